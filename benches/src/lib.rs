//! Measures what the guard costs, compared with the bare handler, with its peers, and with the limits of the databases.

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
pub mod readme;
pub mod report;
pub mod scenario;
