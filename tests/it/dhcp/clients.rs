//! dhclient, udhcpc.
