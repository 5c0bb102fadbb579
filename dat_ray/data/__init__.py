"""What is on disk: table schemas, row ids, shards and manifests, readers."""
