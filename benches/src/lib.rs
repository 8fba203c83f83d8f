//! What the guard costs, against the bare handler, its peers and the limits of the engines below it.

pub mod by_hand;
pub mod charge;
pub mod compile_time;
pub mod contenders;
pub mod engines;
pub mod growth;
pub mod loopback;
pub mod machine;
#[cfg(feature = "peers")]
pub mod peers;
pub mod plot;
pub mod report;
pub mod scenario;
