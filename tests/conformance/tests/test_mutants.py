"""The suite against drivers with one fault each: caught by the cases that are there for it, and by nothing unrelated.

COWSHED_MUTANTS=all runs every core case on each, instead of those that could be concerned and a common core.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

HERE = Path(__file__).parent
COMMON = (
    "P01 P02 P05 P06 P07 P08 P09 P11 P12 P13 S01 S02 S03 S05 S06 S09 L01 L02 L03 L04 L05 L06 L07 L08 L09 L10 L12 L15 "
    "L17 L18 L19 L25 L26 L27 H01 R13 X12"
)
FEW = "P05 S01 L01 L02 L07 L10 H01 R13"  # for those with abilities, which are near to one that is right in all
# fault → (cases that must fail, cases that may fail as well because they look at the same thing; and those that may
# where every core case is run: numbers, or letters for all cases of an area). Without a module it is in broken.py.
MUTANTS = {
    "plugin_IgnoresQuota": ("H01 Q01 Q08", "L01 Q03 Q05 Q06 Q07", "V05 W04"),  # Q01 catching it is Q02
    "plugin_LeaksIntoParent": (
        "L02",
        "H01 L07 X01 C01 C02 C12 N01 B02 I01 I02 Q12 I03 I04 I08 I09",
        "B C D I N Q V W X",
    ),
    "plugin_ReportsTooFewChanges": ("H01", "D02 D03 D04 D07 D22", "A01 D V X15"),
    "plugin_NotIdempotent": ("L07 X01", "X06 X10", "N11 X"),
    "plugin_LosesAttributes": ("L01 X01", "C14 C15 C16", "C I V W X"),
    "plugin_LeavesMount": ("N10 H05", "U03 U07 B02 B03", "A B M N S05 U"),
    "plugin_CommittedWritable": ("L03 L04", "M02", "L M N W"),
    "plugin_RemoveLeaks": ("R04", "B02", "A B J L N Q R S X"),
    "plugin_NonAtomicCommit": ("X01", "L27 X06", "L N X"),
    "plugin_WrongError": ("L06", "X13", "L X"),
    "plugin_UsageZero": ("H01", "Q11 Q12 Q13", "Q V"),
    "plugin_MountsWrites": ("H01", "M01 S01 S05 B02", "B H I M P R S"),
    "plugin_SplitsHardLinks": ("X01", "C18 C19 D13 I08 I09", "A C D I V W X"),
    "plugin_CommitKeepsActive": (
        "L08",
        "H01 L07 L09 L10 L12 L15 L25 R13 S03 X01 A09 B02 B05 I10",
        "A B I J L N R S U V W X",
    ),
    "plugin_PurgeEatsTemp": ("X10", "N12", "N X"),
    "plugin_DataDiffers": ("L07 X01 R13", "L17", "L N R X"),
    "plugin_LosesTimes": ("X01", "L02 C12 I03", "A B C D I L V W X"),
    "plugin_LeaksDescriptor": ("N10", "H01 P06 S05", "A D H M N P R S U X"),
    "plugin_HidesErrors": ("X06", "X07", "A N R X"),
    "plugin_ForgetsWhiteout": ("X01", "C04 C05 D02 D07 A03 A12 B02 I10", "A B C D I L R U V W X"),
    "plugin_DiffForgetsWhiteout": ("H01", "D02 D07", "A D V"),
    "plugin_ChainReversed": ("L21", "L02 L05 C04 C05 X01 A03 B02 I10", "A B C D I L M N U V W X"),
    "plugin_Root0755": ("L01", "X01 L02 C01", "A C D I L M V W X"),
    "plugin_NotDurable": ("X03", "U06"),
    "plugin_CopyNotDurable": ("X03", "U06"),
    "plugin_NeverTooDeep": ("L22", "L07 L08", "L W"),
    "plugin_FindsNewOnly": ("D02 D22", "H01 D07 D10 D14", "A D V"),
    "plugin_LosesNested": ("D17", ""),
    "plugin_LimitOfOneSubvolume": ("Q08", "Q01 Q04 Q05 H01"),
    "plugin_LeavesGroups": ("Q09", "Q10 R04 X01", "H05 J L N R X"),
    "plugin_SnapshotNotDurable": ("X03", "U06"),
    "switches_quota_on": ("Q14", "H01 P11 S05", "A11 B M10"),  # which a plain user may not
    "plugin_TidiesWhiteouts": ("X01 D02", "A01 A03 A12 C04 C05 C08 C09 C22 D07 D08 D09 D14 L13", "A C D L V W X"),
    "plugin_TidiesOpaque": ("D08", "X01 A03 A12 C06 C07 C09", "A C D L V W X"),
    "plugin_DiffOfAnotherKind": (
        "H01 D02 D07",
        "A01 C26 D01 D03 D04 D05 D06 D08 D09 D10 D11 D12 D13 D14 D15 D16 D18 D19",
        "A C D V W",
    ),
    "plugin_BindsTheLowest": ("L01", "C22 H01 L02 L05 L07 L08 M05 X12", "A D H05 I L W X"),
    "plugin_BranchesReversed": ("L21", "L02 L05 C04 C05 C08 X01 A03 A12", "A C D I L M N U V W X"),
    "plugin_BranchNotDurable": ("X03", "U06"),
    "open_makes_a_store": ("S01 P13", "S02 S05 S09 X11", "H05 P S X"),
    "probe_leaves_something": ("P06", "P07", "H05 P"),
    # a right one: the cases catch faults, not abilities
    "able:plugin_Able": ("", "D22 D24 R10 V01"),
    "able:plugin_MissesHardLinks": ("D13", "D14 D22", "A01 D V"),
    "able:plugin_MissesReuse": ("D03 D16", "", "A01 D H01 V X15"),
    "able:plugin_RenameIsDeletion": ("D14", "H01", "A01 D V"),
    "able:plugin_ChangesOnce": ("D02", "", "A01 D V"),
    "able:plugin_ActivationLeaks": ("U05", "H01 L10 R13", "A B H05 J L M12 N R S05 U X"),
    "able:plugin_DeactivateForgotten": ("N10 H05", "H01", "A11 B M S05 U"),
    "able:plugin_SnapshotTorn": ("N08 W02", "H01"),
    "able:plugin_TransferLosesAttributes": ("V01", ""),
    "able:plugin_TakesRubbish": ("V01", ""),
    "able:plugin_CheckFindsNothing": ("R10", ""),
    "able:plugin_CheckFindsTooMuch": ("H01 R06", "R09 R10", "I10"),
    "able:plugin_UsageNotExact": ("Q11", "Q12"),
    "able:plugin_RemovesParentToo": ("X01 W01", "", "A09 D H05 I10 J L13 N R S07 U X"),
    "able:plugin_NotFoundAsEmpty": ("L05", "L10 X13", "L N12 S05 X"),
}
# Those of aufs, which distributions' kernels lack, are mounted by a stand-in.
BRANCHES = "TidiesWhiteouts TidiesOpaque DiffOfAnotherKind BindsTheLowest BranchesReversed BranchNotDurable"
OF_BRANCHES = {f"plugin_{fault}" for fault in BRANCHES.split()}
STAND_IN = f"{HERE.parents[2] / 'drivers/aufs/tests/fuse_overlayfs.py'}:stand_in"


def run(name, folder):
    """The results of the suite on a fault, case → (outcome, reason), in a process and a mount namespace of its own."""
    must, may = MUTANTS[name][:2]
    plugin = name if ":" in name else f"broken:{name}"
    common = COMMON if plugin.startswith("broken:") and name not in OF_BRANCHES else FEW
    found = suite(plugin, folder / "chosen", "-k", chosen({*common.split(), *must.split(), *may.split()}))
    if os.environ.get("COWSHED_MUTANTS") == "all":
        found += suite(plugin, folder / "core", "--level", "core")
    return found


def suite(plugin, folder, *words):
    folder.mkdir()
    env = {**os.environ, "PYTHONPATH": str(HERE), "TMPDIR": str(folder)}
    command = [
        "unshare", "--mount", "--propagation", "private", sys.executable, "-m", "pytest", "-q", "--pyargs",
        "cowshed_conformance", "--driver", plugin, "--report-dir", str(folder / "report"), *words,
        *(("--stand-in", STAND_IN) if plugin.partition(":")[2] in OF_BRANCHES else ()),
    ]  # fmt: skip
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=1200)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return json.loads((folder / "report" / "conformance.json").read_text())["cases"]


@pytest.fixture(scope="module")
def reports(request, tmp_path_factory):
    """name → the report that is to come. Each run waits for the disk more than for the processor: some at once."""
    here = [item for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    names = [item.callspec.params["name"] for item in here]
    pool = ThreadPoolExecutor(3)
    yield {name: pool.submit(run, name, tmp_path_factory.mktemp(name.replace(":", "-"))) for name in names}
    pool.shutdown(cancel_futures=True)


def chosen(cases):
    return " or ".join(f"test_{case}_" for case in sorted(cases))


@pytest.mark.skipif(os.geteuid() != 0, reason="the suite mounts file systems")
@pytest.mark.parametrize("name", list(MUTANTS))
def test_a_fault_is_caught_by_its_cases_and_by_no_other(name, reports):
    must, may, more = (set(cases.split()) for cases in (*MUTANTS[name], "")[:3])
    cases = reports[name].result()
    failed = {case["case"]: case["reason"] for case in cases if case["outcome"] in ("failed", "error")}
    assert must <= {case["case"] for case in cases}
    assert must <= set(failed), f"not caught by {must - set(failed)}"
    unrelated = {case for case in set(failed) - must - may - more if case[0] not in more}
    assert not unrelated, {case: failed[case] for case in unrelated}


def test_there_are_enough_faults():
    assert len([name for name, (must, *_) in MUTANTS.items() if must]) >= 25
