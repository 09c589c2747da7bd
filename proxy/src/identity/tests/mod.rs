//! The CA on disk and from the operator, judged by `openssl` too.

use super::*;
use crate::limits::{CLOCK_SKEW, FORMER_ROOT_TRUST, LEAF_LIFETIME, LEAF_RENEW_AT, LEAF_RENEW_JITTER};

pub mod lab;

use self::lab::{Mesh, PlugIn};

mod built_in;
mod plug_in;
mod remote;
