//! What the user of the connection must be allowed to do. Every command is tried when the store is opened: a user who may
//! claim and not record would run every request twice.

use redis::{Cmd, RedisError, Value};

use crate::store::claim::Token;
use crate::store::columns::token_text;
use crate::store::redis::given_back;
use crate::store::redis::open_error::RedisOpenError;
use crate::store::redis::scripts::may_not;
use crate::store::redis::store::RedisStore;

impl RedisStore {
    /// Tries every command of the store and of its scripts, on names that no listing shows.
    pub(super) async fn try_rights(&self) -> Result<(), RedisOpenError> {
        for (command, words) in self.commands() {
            if let Some(source) = self.rejects(&words).await? {
                return Err(RedisOpenError::Forbidden { command, grant: self.grant(), source });
            }
        }
        let publish = redis::cmd("PUBLISH").arg(&self.0.channel).arg("").to_owned();
        if let Some(error) = self.rejects(&publish).await? {
            tracing::warn!(
                %error,
                "messages cannot be sent: requests that wait for one of another process look every 250 ms; grant +publish and &{}",
                self.0.channel
            );
        }
        Ok(())
    }

    /// Why the user may not use the command, if so. Any other error is of this moment, such as that the server is full.
    async fn rejects(&self, command: &Cmd) -> Result<Option<RedisError>, RedisOpenError> {
        match self.0.connection.query::<Value>(command).await {
            Err(error) if error.is_io_error() => Err(RedisOpenError::Unreachable(error)),
            Err(error) if may_not(&error) => Ok(Some(error)),
            _ => Ok(None),
        }
    }

    fn commands(&self) -> Vec<(&'static str, Cmd)> {
        let token = Token::unique();
        let name = format!("{}trial:{}", self.0.prefix, token_text(token));
        let mark = given_back::name(&self.0.prefix, name.as_bytes(), token);
        // In milliseconds: gone by itself, if the process dies meanwhile.
        let briefly = "1000";
        let (index, script) = (&self.0.index, &self.0.scripts.look);
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
            of("SCAN", &[b"0", b"COUNT", b"1"]),
        ];
        if self.0.acknowledged.is_some() {
            commands.push(of("WAIT", &[b"0", b"1"]));
        }
        commands
    }

    /// What an administrator may run, with the rights of the store.
    fn grant(&self) -> String {
        let mut commands: Vec<_> = self.commands().into_iter().map(|(command, _)| command.to_lowercase()).collect();
        commands.sort();
        commands.dedup();
        let pattern = self.pattern();
        format!(
            "ACL SETUSER USER resetchannels ~{pattern} &{} +{} +info +config|get +publish +subscribe",
            self.0.channel,
            commands.join(" +")
        )
    }
}
