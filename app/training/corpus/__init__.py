"""The labelled data: which sets are used, how they are read, cleaned, mixed and disguised."""
