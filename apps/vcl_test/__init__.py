"""`vcl_test_server` and `vcl_test_client`: VPP's test programs of VCL, on this stack.

A client tells a server over a TCP session what is to come, and moves it over sessions of the
protocol under test, at the port above. See docs/vcl.md.
"""
