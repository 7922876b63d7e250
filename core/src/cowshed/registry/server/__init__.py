"""A registry: the OCI distribution specification over HTTP, its content in a directory that other tools read.

service      listens, has a thread per connection, stops gracefully
connection   HTTP/1.1 on one connection; message: requests and responses; routes: which function answers what
blobs, manifests, listings     the end points
store        a directory of OCI layouts over one pool of blobs; uploads: what is being received
access       who may do what: htpasswd, tokens
garbage      what nobody refers to; scrub: what is damaged or does not fit; chores: both from time to time
upstream     another registry that this one fetches from
"""
