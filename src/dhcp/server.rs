//! DHCP's sockets and tasks: receive, gather facts, let `decide` judge, commit, send.
