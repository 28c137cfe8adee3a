"""`vcl_test_server` and `vcl_test_client`: VPP's test programs of VCL, on this stack.

A client announces a test to a server over a TCP session, and transfers its data over sessions of
the protocol under test, at the port above. See docs/vcl.md.
"""
