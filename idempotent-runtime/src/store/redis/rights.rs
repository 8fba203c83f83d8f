//! The rights that the user of the connection needs. The store tries every command when it is opened, because a user
//! who may claim but not record would run every request twice.

use redis::{Cmd, RedisError, Value};

use crate::store::claim::Token;
use crate::store::columns::token_text;
use crate::store::redis::forbidden::may_not;
use crate::store::redis::given_back;
use crate::store::redis::inner::Inner;
use crate::store::redis::listing::pattern;
use crate::store::redis::open_error::RedisOpenError;

/// Tries every command of the store and of its scripts, on names that no listing shows.
pub(super) async fn try_all(inner: &Inner) -> Result<(), RedisOpenError> {
    for (command, words) in commands(inner) {
        if let Some(source) = rejects(inner, &words).await? {
            return Err(RedisOpenError::Forbidden { command, grant: grant(inner), source });
        }
    }
    let publish = redis::cmd("PUBLISH").arg(&inner.channel).arg("").to_owned();
    if let Some(error) = rejects(inner, &publish).await? {
        tracing::warn!(
            %error,
            "notifications cannot be sent: requests that wait for a request of another process poll every 250 ms; grant +publish and &{}",
            inner.channel
        );
    }
    Ok(())
}

/// Returns the error if the user may not use the command. Any other error is temporary, such as that the server is
/// full.
async fn rejects(inner: &Inner, command: &Cmd) -> Result<Option<RedisError>, RedisOpenError> {
    match inner.connection.query::<Value>(command).await {
        Err(error) if error.is_io_error() => Err(RedisOpenError::Unreachable(error)),
        Err(error) if may_not(&error) => Ok(Some(error)),
        _ => Ok(None),
    }
}

fn commands(inner: &Inner) -> Vec<(&'static str, Cmd)> {
    let token = Token::unique();
    let name = format!("{}trial:{}", inner.prefix, token_text(token));
    let mark = given_back::name(&inner.prefix, name.as_bytes(), token);
    // The name expires after this many milliseconds, even if the process dies meanwhile.
    let briefly = "1000";
    let (index, script) = (&inner.index, &inner.scripts.look);
    let claims = inner.claims_of(name.as_bytes()).as_bytes();
    let one = |command: &'static str| {
        let mut words = redis::cmd(command);
        words.arg(&name);
        (command, words)
    };
    let with = |(command, mut words): (&'static str, Cmd), more: &[&str]| {
        words.arg(more);
        (command, words)
    };
    let of = |command: &'static str, words: &[&[u8]]| (command, redis::cmd(command).arg(words).to_owned());
    let mut commands = vec![
        of("EVALSHA", &[script.hash.as_bytes(), b"1", name.as_bytes()]),
        of("EVAL", &[b"return 0", b"2", name.as_bytes(), &mark]),
        with(one("SET"), &["", "PX", briefly]),
        one("GET"),
        with(one("GETRANGE"), &["0", "0"]),
        one("EXISTS"),
        one("PTTL"),
        with(one("PEXPIRE"), &[briefly]),
        one("DEL"),
        of("SET", &[&mark, b"", b"PX", briefly.as_bytes()]),
        of("DEL", &[&mark]),
        of("TIME", &[]),
        of("SADD", &[index.as_bytes(), name.as_bytes()]),
        of("SREM", &[index.as_bytes(), name.as_bytes()]),
        of("SSCAN", &[index.as_bytes(), b"0"]),
        of("ZADD", &[claims, b"0", name.as_bytes()]),
        of("ZREM", &[claims, name.as_bytes()]),
        of("ZSCAN", &[claims, b"0"]),
        of("ZRANGE", &[claims, b"-inf", b"0", b"BYSCORE", b"LIMIT", b"0", b"1"]),
        of("SCAN", &[b"0", b"COUNT", b"1"]),
    ];
    if inner.acknowledged.is_some() {
        commands.push(of("WAIT", &[b"0", b"1"]));
    }
    commands
}

/// Returns the command with which an administrator grants the rights of the store.
fn grant(inner: &Inner) -> String {
    let mut commands: Vec<_> = commands(inner).into_iter().map(|(command, _)| command.to_lowercase()).collect();
    commands.sort();
    commands.dedup();
    let pattern = pattern(inner);
    format!(
        "ACL SETUSER USER resetchannels ~{pattern} &{} +{} +info +config|get +publish +subscribe",
        inner.channel,
        commands.join(" +")
    )
}
