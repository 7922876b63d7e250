"""The schema of the store's database, as the list of steps that lead to it. A step, once released, never changes.

A database of version N has had the first N steps. A version beyond the list was made by a newer Cowshed.
"""

from __future__ import annotations

STEPS = (
    """
    create table meta (key text primary key, value) without rowid;

    create table drivers (
        name text primary key,
        store text not null,           -- identity that the driver's init() gave
        options text not null,         -- JSON: those that creation fixed
        remembered text not null       -- JSON: where stevedore found the plug-in
    ) without rowid;

    create table layers (
        number integer primary key,    -- 1 … 2**24-1; lock byte, project id, thin device id
        id text not null unique,       -- 32 hex digits
        driver text not null references drivers(name),
        kind text not null check (kind in ('active', 'committed')),
        parent integer references layers(number),
        chain_id text,                 -- of a committed layer
        diff_id text,
        data text not null default '{}',
        durable integer not null default 0,
        boot_id text not null,
        created integer not null       -- ns since the epoch
    );
    create unique index layers_by_chain on layers(driver, chain_id) where chain_id is not null;
    create index layers_by_parent on layers(parent);

    create table journal (
        number integer primary key references layers(number),
        op text not null check (op in ('prepare', 'run', 'apply', 'commit', 'remove')),
        args text not null default '{}'
    );

    create table images (
        id text primary key,           -- sha256 of the config
        manifest_digest text not null,
        manifest blob not null,
        media_type text not null,
        config blob not null,
        diff_ids text not null,        -- JSON list
        top_chain text not null,       -- chain id of all layers, '' if there are none
        blobs text not null,           -- JSON list of [digest, media type, size], lowest layer first
        platform text not null,
        size integer not null,         -- bytes of the blobs
        created integer not null,
        pulled integer not null
    ) without rowid;

    create table chains (              -- which chain ids an image stands on
        image text not null references images(id) on delete cascade,
        chain_id text not null,
        primary key (chain_id, image)
    ) without rowid;

    create table tags (
        name text primary key,         -- canonical: registry/repository:tag or …@digest
        image text not null references images(id)
    ) without rowid;
    create index tags_by_image on tags(image);

    create table containers (
        number integer primary key,
        id text not null unique,
        name text not null unique,
        image_id text references images(id),
        image_ref text not null,
        driver text not null,
        state text not null check (state in ('creating', 'created', 'running', 'exited', 'removing')),
        created integer not null,
        started integer,
        finished integer,
        pid integer,
        exit_code integer,
        error text not null default '',
        oom integer not null default 0,
        restarts integer not null default 0,
        wanted text not null default 'stopped',
        labels text not null default '{}',
        config text not null
    );
    create index containers_by_image on containers(image_id);

    create table volumes (
        name text primary key,
        created integer not null,
        anonymous integer not null default 0,
        labels text not null default '{}'
    ) without rowid;

    create table volume_users (
        volume text not null references volumes(name),
        container integer not null references containers(number) on delete cascade,
        primary key (volume, container)
    ) without rowid;
    """,
    """
    create table leases (              -- blobs that a running command counts on; void when its byte is free
        digest text not null,
        taker integer not null,        -- byte of the lock file `leases`
        primary key (digest, taker)
    ) without rowid;
    """,
    """
    -- What removals have to look at, so that they need not look at everything. Triggers keep it right whoever deletes.

    create index layers_by_driver on layers(driver, kind);
    create index images_by_digest on images(manifest_digest);
    create index layers_by_chain_alone on layers(chain_id) where chain_id is not null;

    create table loose_layers (        -- committed layers that no image and no layer stands on: to be removed
        number integer primary key
    );

    create table image_blobs (         -- which images list a blob
        digest text not null,
        image text not null,
        primary key (digest, image)
    ) without rowid;
    create index image_blobs_by_image on image_blobs(image);

    create table loose_blobs (         -- blobs that may be to be deleted
        digest text primary key,
        unlisted integer not null      -- an image that listed it was removed; else a pull that broke has brought it
    ) without rowid;

    create table loose_volumes (       -- volumes without a row whose directory may be there: to be deleted
        name text primary key
    ) without rowid;

    insert or ignore into image_blobs
        select json_extract(value, '$[0]'), images.id from images, json_each(images.blobs);
    insert into loose_layers select number from layers where kind = 'committed';

    create view bare_layers as select number, chain_id from layers l where kind = 'committed'
        and not exists (select 1 from layers child where child.parent = l.number)
        and not exists (select 1 from chains where chains.chain_id = l.chain_id);

    create trigger layer_deleted after delete on layers begin
        insert or ignore into loose_layers select number from bare_layers where number = old.parent; end;
    create trigger layer_committed after update of kind, chain_id on layers when new.kind = 'committed' begin
        insert or ignore into loose_layers select number from bare_layers where number = new.number; end;
    create trigger chain_deleted after delete on chains begin
        insert or ignore into loose_layers select number from bare_layers where chain_id = old.chain_id; end;
    create trigger chain_inserted after insert on chains begin
        delete from loose_layers where number in (select number from layers where chain_id = new.chain_id); end;
    create trigger blob_unlisted after delete on image_blobs begin
        insert or replace into loose_blobs values (old.digest, 1); end;
    create trigger lease_ended after delete on leases begin
        insert or ignore into loose_blobs select old.digest, 0
            where not exists (select 1 from image_blobs where digest = old.digest); end;
    create trigger volume_deleted after delete on volumes begin
        insert or ignore into loose_volumes values (old.name); end;
    """,
    """
    -- Deleting a row looks for those that name it.
    create index chains_by_image on chains(image);
    create index volume_users_by_container on volume_users(container);
    """,
    """
    create table conversion (              -- what `storage convert` does, until it is accepted: one row at most
        target text not null references drivers(name),
        sources text not null,             -- JSON: the drivers that it is from
        fresh integer not null,            -- nothing was in the target's store before
        lossy integer not null,            -- what the target cannot hold may be lost
        begun integer not null
    );

    create table converted (               -- the layers that it has made others of; both are kept until it is accepted
        layer integer primary key,         -- the first one
        twin integer,                      -- the one that takes its place, null if that has been removed since
        made integer not null,             -- the twin was made for it
        container text,                    -- the id of the container whose layer it is, null for a committed one
        digest text not null               -- of the tree; '' where it was not looked at: the twin was there before
    );
    create index converted_by_twin on converted(twin);
    create trigger converted_deleted after delete on layers begin
        delete from converted where layer = old.number; end;
    create trigger twin_deleted after delete on layers begin
        update converted set twin = null where twin = old.number; end;

    create table leaving_drivers (         -- drivers whose stores hold nothing any more and are to be destroyed
        name text primary key,
        store text not null,
        options text not null
    ) without rowid;
    """,
    """
    -- JSON: the runtime that a container has for its life, and where that was found
    alter table containers add column runtime text not null default '{"name":"native"}';
    """,
    """
    create table blob_places (             -- repositories that had a blob: a push can have it mounted from there
        digest text not null,
        registry text not null,
        repository text not null,
        seen integer not null,             -- ns since the epoch
        primary key (digest, registry, repository)
    ) without rowid;
    create index blob_places_by_time on blob_places(seen);
    """,
    """
    -- Which containers to look at for a monitor that was killed, so that their restart policy is kept to.
    create index containers_to_restart on containers(state)
        where state = 'running' and json_extract(config, '$.restart') != 'no';
    """,
    """
    create table lists (                   -- indexes that `manifest create` began, until they are removed
        name text primary key,             -- canonical
        document text not null             -- JSON: the index, and where its entries are from
    ) without rowid;
    """,
    """
    -- Of what a name stood for where its image came from: an index, if there is one; '' if that is not known
    alter table tags add column digest text not null default '';
    create index tags_by_digest on tags(digest) where digest != '';
    """,
    """
    create table origins (                 -- the names of registries that an image was pulled by
        image text not null references images(id) on delete cascade,
        name text not null,                -- canonical
        digest text not null,              -- of what the name stood for: the index, if there was one
        manifest text not null,            -- digest of the image's manifest
        evidence text not null,            -- JSON: the signatures of either that were found, whatever they are worth
        primary key (image, name)
    ) without rowid;
    """,
    """
    create table indexes (                 -- what names stand for, that it need not be fetched again
        digest text not null,
        root text not null,                -- the index that the name stands for: this one, or one that this is in
        document blob not null,
        primary key (digest, root)
    ) without rowid;
    """,
)
