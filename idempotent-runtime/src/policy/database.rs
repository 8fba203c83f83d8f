//! The database of a handler's transaction.

/// Returns the database of the handler's `Tx`. `databases` are those of the arguments that look like a `Tx`. The
/// compiler evaluates this: a panic becomes a compile error.
#[track_caller]
pub(super) const fn database_of_tx(databases: &[Option<&'static str>]) -> Option<&'static str> {
    let mut database = None;
    let mut index = 0;
    while index < databases.len() {
        if databases[index].is_some() {
            assert!(database.is_none(), "the handler has two arguments `Tx`, but one transaction: remove one of them");
            database = databases[index];
        }
        index += 1;
    }
    database
}
