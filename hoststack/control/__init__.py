"""The debug CLI: VPP's commands, run in workers and put together for whoever asks."""
