//! A server with its own database, in which its handlers write through a `Tx`.

use idempotent_tests::postgres::Database;
use idempotent_tests::{Runs, Server};
use sqlx::PgPool;

pub(super) struct Bench {
    pub(super) server: Server,
    pub(super) runs: Runs,
    pub(super) pool: PgPool,
    pub(super) database: Database,
}
