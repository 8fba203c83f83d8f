//! Compares each store with its database: with the least that its work would cost there, in the same run.

pub mod contest;
pub mod postgres;
pub mod redis;
pub mod sample;
pub mod sqlite;
