//! What egret costs, measured.

pub mod instructions;
