//! The command line.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Parser, Subcommand};
use idempotent_runtime::RecordKey;
use idempotent_runtime::operate::{Keys, State};

use crate::failure::Failure;
use crate::resolve::Resolve;
use crate::secret::{DIGEST_KEY, secret};

const EXAMPLES: &str = "\
Examples:
  idempotent --store sqlite://idempotency.db list --state in_flight
  idempotent --store postgres://app@db/shop stuck --json
  idempotent --store rediss://cache:6379 show --scope charges --caller acct_17 8e03978e-40d5-43dd-bc93-6894a57f9324
  idempotent --store rediss://cache:6379 purge --scope charges --caller acct_17 8e03978e-40d5-43dd-bc93-6894a57f9324
  idempotent --store rediss://cache:6379 resolve --scope transfers 8e03978e --status 201 \\
    --header 'content-type: application/json' --body @receipt.json --reason 'tr_17 is at the bank' --unsealed
  idempotent --store rediss://cache:6379 resolve --scope transfers 8e03978e --not-executed --reason 'the bank has no transfer'
  IDEMPOTENT_STORE=postgres://app:secret@db/shop idempotent list   # keeps the password out of the list of processes

Servers on other machines are reached by TLS. Quote the URL, because a shell reads `?` and `&` itself:
  'postgres://app@db/shop?sslmode=verify-full&sslrootcert=PATH'   # sslcert=PATH&sslkey=PATH: the client's own
  'rediss://cache:6379?cacert=PATH'                               # cert=PATH&key=PATH: the client's own
  'rediss+sentinel://host1:26379,host2:26379/service/0'           # the master of `service`
  'postgres://app@db/shop?sslmode=disable', 'redis://cache:6379?tls=disable'   # in clear, if you trust the network

Exit status:
  0  done
  1  the key has no entry (show, purge, resolve); something is stuck (stuck --check)
  2  the arguments are wrong
  3  the store cannot be opened, or does not answer
  4  the purge or resolution was not confirmed, or the entry has changed or runs";

/// Show, purge and resolve the entries of a store of idempotent-runtime: claims of running handlers, and recorded responses. A body is
/// never shown. Keys are shown only with --reveal.
#[derive(Parser)]
#[command(name = "idempotent", version, after_help = EXAMPLES)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) store: StoreOptions,
    /// Print JSON, in the format of the inspector.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Print complete keys.
    #[arg(long, global = true)]
    pub(crate) reveal: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Args)]
pub(crate) struct StoreOptions {
    // The URL is parsed later, because clap would print a rejected value with its password.
    /// The URL of the store: `sqlite://PATH`, `rediss://HOST:PORT`, `rediss+sentinel://HOST:PORT/SERVICE` or
    /// `postgres://USER@HOST/DATABASE`.
    #[arg(long = "store", value_name = "URL", env = "IDEMPOTENT_STORE", hide_env_values = true, global = true)]
    pub(crate) url: Option<String>,
    /// The server is part of a Redis Cluster: read the whole Cluster.
    #[arg(long, global = true)]
    pub(crate) cluster: bool,
    /// The prefix of the keys in Redis [default: idempotency:].
    #[arg(long, global = true)]
    pub(crate) prefix: Option<String>,
    /// The schema of the tables in PostgreSQL [default: idempotency].
    #[arg(long, global = true)]
    pub(crate) schema: Option<String>,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Count all entries by state, and list them: the oldest claims first, the newest records first.
    List {
        #[command(flatten)]
        filter: Filter,
        /// List only entries in this state: outcome_unknown, damaged, past_lease, in_flight, completed,
        /// response_not_recorded.
        #[arg(long)]
        state: Option<State>,
    },
    /// List the claims that a person should look at: those with an expired lease, and those that cannot be read.
    ///
    /// The command reads only the claims, by an index of the store. `list --state damaged` also finds records that
    /// cannot be read. In Redis, only `list` finds claims that cannot be read, and a claim whose process died before it
    /// could add the claim to the index.
    ///
    /// `outcome_unknown` is the claim of a handler with `after_crash = "reject"`. It never expires, and every retry is
    /// rejected until the claim is resolved or purged. `past_lease` is any other claim with an expired lease. The next
    /// retry runs its handler again.
    Stuck {
        #[command(flatten)]
        filter: Filter,
        /// Exit with 1 if anything is stuck, for monitoring.
        #[arg(long)]
        check: bool,
    },
    /// Show the entry of one key.
    Show {
        #[command(flatten)]
        target: Target,
    },
    /// Delete the entry of one key. A retry then runs the handler again.
    Purge {
        #[command(flatten)]
        target: Target,
        /// Do not ask for a confirmation. Without a terminal, nothing is purged unless this option is given.
        #[arg(long)]
        yes: bool,
    },
    /// Resolve a request whose outcome is unknown: its retries get your response, or the handler runs.
    ///
    /// The command resolves only the claim that it shows, and only if the lease of the claim has expired. If two
    /// operators resolve it at the same time, only one of them succeeds. A record is never changed.
    Resolve(Box<Resolve>),
}

#[derive(Args)]
pub(crate) struct Filter {
    /// List only entries of this scope.
    #[arg(long)]
    pub(crate) scope: Option<String>,
    /// The largest number of entries to list. All entries are counted.
    #[arg(long, default_value_t = 100)]
    pub(crate) limit: usize,
}

#[derive(Args)]
#[command(group = ArgGroup::new("entry").required(true).args(["key", "id"]))]
pub(crate) struct Target {
    /// The key, as the client sends it, without quotes.
    #[arg(requires = "scope")]
    key: Option<String>,
    /// The scope of the key's handler.
    #[arg(long, requires = "key")]
    scope: Option<String>,
    /// The caller of the key, if the handler names one.
    #[arg(long, requires = "key")]
    caller: Option<String>,
    /// Digest caller and key before the search, because the registry uses `digest_keys`.
    #[arg(long, requires = "key")]
    digested: bool,
    /// The file of the registry's secret, if it has one (`digest_with`). You can instead set IDEMPOTENT_DIGEST_KEY to
    /// the secret itself.
    #[arg(long, value_name = "FILE", requires = "digested")]
    digest_key_file: Option<PathBuf>,
    /// The id that a listing shows, instead of a key. The program searches the store for it.
    #[arg(long)]
    id: Option<String>,
}

/// The entry that the arguments name.
pub(crate) enum Entry {
    Key(RecordKey),
    Id(String),
}

impl Target {
    pub(crate) fn is_digested(&self) -> bool {
        self.digested
    }

    pub(crate) fn entry(&self) -> Result<Entry, Failure> {
        let (Some(key), Some(scope)) = (&self.key, &self.scope) else {
            return Ok(Entry::Id(self.id.as_deref().unwrap_or_default().to_ascii_lowercase()));
        };
        let key = RecordKey::new(scope, self.caller.as_deref(), key);
        if !self.digested {
            return Ok(Entry::Key(key));
        }
        let secret = secret(self.digest_key_file.as_ref(), DIGEST_KEY)?;
        Ok(Entry::Key(secret.map_or_else(|| key.digested(), |secret| secret.digested(&key))))
    }
}

impl Arguments {
    pub(crate) fn keys(&self) -> Keys {
        if self.reveal { Keys::Revealed } else { Keys::Masked }
    }
}
