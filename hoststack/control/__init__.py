"""The debug CLI: VPP's commands, run in the workers, their answers merged."""
