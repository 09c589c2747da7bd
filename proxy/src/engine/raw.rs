//! Bytes copied both ways, for TLS passed through and for TCP.
