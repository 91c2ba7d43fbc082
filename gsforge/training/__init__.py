"""Lightning callbacks, checkpointing and run directories; knows no method."""
