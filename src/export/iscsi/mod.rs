//! iSCSI (RFC 7143): the target.
