//! Each store against the engine below it: the least that its work would cost there, in the same run.

pub mod contest;
pub mod postgres;
pub mod redis;
pub mod sample;
pub mod sqlite;
