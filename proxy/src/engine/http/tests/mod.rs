//! Real loopback TCP: a client, the engine, an upstream.
