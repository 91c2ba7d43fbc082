"""LightningDataModules over indexed WebDataset shards, and the tools that write the shards."""
