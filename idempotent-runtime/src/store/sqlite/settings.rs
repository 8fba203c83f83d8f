//! The state that a handler can leave behind on the connection of transactions, beside rows: settings (`PRAGMA`),
//! temporary tables, and attached databases. A rollback does not undo the settings.

use sqlx::sqlite::SqliteConnection;

const SETTINGS: &str = "SELECT json_array(
    (SELECT count(*) FROM temp.sqlite_schema),
    (SELECT count(*) FROM pragma_database_list WHERE name NOT IN ('main', 'temp')),
    'a' LIKE 'A',
    query_only, foreign_keys, ignore_check_constraints, recursive_triggers, reverse_unordered_selects, writable_schema,
    trusted_schema, legacy_alter_table, automatic_index, cell_size_check, read_uncommitted, full_column_names,
    short_column_names, synchronous, locking_mode, secure_delete, temp_store, cache_size, cache_spill, max_page_count,
    timeout)
FROM pragma_query_only, pragma_foreign_keys, pragma_ignore_check_constraints, pragma_recursive_triggers,
    pragma_reverse_unordered_selects, pragma_writable_schema, pragma_trusted_schema, pragma_legacy_alter_table,
    pragma_automatic_index, pragma_cell_size_check, pragma_read_uncommitted, pragma_full_column_names,
    pragma_short_column_names, pragma_synchronous, pragma_locking_mode, pragma_secure_delete, pragma_temp_store,
    pragma_cache_size, pragma_cache_spill, pragma_max_page_count, pragma_busy_timeout";

/// Returns the settings as a text that can be compared with an earlier one.
pub(super) async fn of(connection: &mut SqliteConnection) -> Result<String, sqlx::Error> {
    sqlx::query_scalar(SETTINGS).fetch_one(connection).await
}

/// The words of which one is in each statement that changes the state. `temp` is also the name of the schema of temporary
/// tables.
const WORDS: [&[u8]; 4] = [b"pragma", b"temp", b"attach", b"detach"];

/// Returns whether the statement may change the state. A longer word that contains one of the words counts too.
pub(super) fn may_be_changed_by(sql: &str) -> bool {
    let sql = sql.as_bytes();
    WORDS.iter().any(|word| sql.windows(word.len()).any(|part| part.eq_ignore_ascii_case(word)))
}
