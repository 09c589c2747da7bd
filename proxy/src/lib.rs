//! The egret agent: transparent TLS origination for the pods of one node.
//!
//! The folders follow a packet, and knowledge flows one way: [`node`], [`netns`] and [`capture`] (kernel) hand connections to
//! [`engine`] (accept, sniff, route, connect, copy), which asks [`tls`] for contexts. Beside them [`source`] reads
//! objects ([`api`]), and [`mesh`] compiles them into the one immutable table that the engine looks things up in;
//! [`identity`] holds the certificates that the pods bear among themselves. [`controller`] is what a cluster has once.

pub mod admin;
pub mod agent;
pub mod api;
pub mod capture;
pub mod cli;
pub mod controller;
pub mod engine;
pub mod identity;
pub mod limits;
pub mod mesh;
pub mod netns;
pub mod node;
pub mod source;
pub mod sys;
pub mod telemetry;
pub mod tls;
