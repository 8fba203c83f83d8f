//! `resolve`: validates an operator's settlement, asks for a confirmation, applies it, and writes it to the audit.

use std::fs;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use idempotent_runtime::operate::{EntryReport, EntryView, Keys, Settlement};
use idempotent_runtime::store::{EntryState, Resolution, Resolved};
use idempotent_runtime::{SealingKey, SealingKeys};
use serde::Serialize;

use crate::arguments::Target;
use crate::audit::{Asked, Audit};
use crate::failure::Failure;
use crate::print;
use crate::secret::{SEALING_KEY, secret};
use crate::store::Opened;

#[derive(Args)]
#[command(group = ArgGroup::new("outcome").required(true).args(["status", "not_executed"]))]
pub(crate) struct Resolve {
    #[command(flatten)]
    target: Target,
    /// The request was executed. Its retries get a response with this status.
    #[arg(long)]
    status: Option<u16>,
    /// The request was not executed. The next retry runs the handler.
    #[arg(long)]
    not_executed: bool,
    /// A header line of the response. The option may be repeated.
    #[arg(long = "header", value_name = "NAME: VALUE", conflicts_with = "not_executed")]
    headers: Vec<String>,
    /// The body of the response: the text itself, `@FILE` for the content of a file, or `@-` for the standard input.
    #[arg(long, value_name = "TEXT|@FILE", conflicts_with = "not_executed")]
    body: Option<String>,
    /// The time for which retries get the response [default: 24h]. Give the `ttl` of the handler if it is longer,
    /// because a retry after that time runs the handler again.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, conflicts_with = "not_executed")]
    ttl: Option<Duration>,
    /// The reason for the audit: how you know whether the request was executed.
    #[arg(long)]
    reason: String,
    /// Your name for the audit [default: the user of this process].
    #[arg(long, value_name = "NAME", env = "IDEMPOTENT_ACTOR")]
    actor: Option<String>,
    /// Append the audit to this file, one line of JSON for each resolution, instead of printing it to standard error.
    #[arg(long, value_name = "FILE", env = "IDEMPOTENT_AUDIT_LOG")]
    audit_log: Option<PathBuf>,
    /// The file of the key with which the registry seals records (`seal_with`). You can instead set
    /// IDEMPOTENT_SEALING_KEY to the key itself.
    #[arg(long, value_name = "FILE", conflicts_with = "not_executed")]
    sealing_key_file: Option<PathBuf>,
    /// The name of the deployment, if the registry's sealing keys have one.
    #[arg(long, value_name = "NAME", conflicts_with = "not_executed")]
    deployment: Option<String>,
    /// The name that the store has in the registry. A sealed record is bound to it [default: default].
    #[arg(long, value_name = "NAME", conflicts_with = "not_executed")]
    store_name: Option<String>,
    /// Write the response unsealed, because the registry does not seal records.
    #[arg(long, conflicts_with_all = ["sealing_key_file", "deployment", "store_name", "not_executed"])]
    unsealed: bool,
    /// Do not ask for a confirmation. Without a terminal, nothing is resolved unless this option is given.
    #[arg(long)]
    yes: bool,
}

#[derive(Serialize)]
struct Answer {
    resolved: bool,
    entry: EntryReport,
}

pub(crate) async fn run(store: &Opened, resolve: Resolve, keys: Keys, json: bool) -> Result<(), Failure> {
    let settlement = resolve.settlement()?;
    let mut audit = Audit::open(resolve.audit_log.as_deref())?;
    let digested = resolve.target.is_digested();
    let view = store.look_up(&resolve.target.entry()?).await?;
    let key = view.key().ok_or(Failure::NothingThere)?;
    let entry = view.entry().ok_or(Failure::NotResolvable)?;
    // The settlement is validated before the question, so that a person is not asked to confirm something impossible.
    let resolution = settlement.resolution(entry)?;
    let EntryState::Claimed { token, .. } = entry.state else { return Err(Failure::NotResolvable) };
    if !resolve.yes {
        ask(&print::entry(&view, keys), &settlement, &resolution)?;
    }
    let status = settlement.status().map(|status| status.as_u16());
    let by = settlement.operator().unwrap_or_default();
    let asked = Asked { by, store: store.address(), view: &view, status, reason: settlement.reason(), digested };
    // The request is written to the audit before the change too. If the process dies or the answer is lost, the audit
    // still shows who requested which resolution.
    audit.tell(&asked.ended("asked")).map_err(Failure::Untold)?;
    let resolved = store.resolve(key, token, resolution).await;
    let outcome = match &resolved {
        Ok(Resolved::Yes) if status.is_some() => "resolved_as_executed",
        Ok(Resolved::Yes) => "resolved_as_not_executed",
        Ok(Resolved::StillRunning) => "still_running",
        Ok(_) => "changed_hands",
        Err(_) => "failed",
    };
    let told = audit.tell(&asked.ended(outcome));
    match resolved? {
        Resolved::Yes => {}
        Resolved::StillRunning => return Err(Failure::StillRunning),
        _ => return Err(Failure::ChangedHands),
    }
    print_done(&view, status.is_some(), keys, json);
    told.map_err(Failure::DoneUntold)
}

fn print_done(view: &EntryView, is_executed: bool, keys: Keys, json: bool) {
    if json {
        print::json(&Answer { resolved: true, entry: view.report(keys) });
    } else if is_executed {
        print::out("resolved: retries with this key get the response\n");
    } else {
        print::out("resolved: the next retry with this key runs the handler\n");
    }
}

/// Asks for a confirmation on the terminal. Fails if there is none.
fn ask(entry: &str, settlement: &Settlement, resolution: &Resolution) -> Result<(), Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::NoTerminal { done: "resolved" });
    }
    let consequence = match (settlement.status(), resolution) {
        (Some(status), Resolution::Executed { ttl, .. }) => {
            let (status, ttl) = (status.as_u16(), humantime::format_duration(*ttl));
            format!("for {ttl}, retries get a response with status {status}; a retry after that time runs the handler")
        }
        _ => "the next retry runs the handler, so be sure that it did not do its work".to_owned(),
    };
    eprint!("{entry}\nCareful: {consequence}.\nResolve it? Only `yes` does: ");
    let _ = io::stderr().flush();
    let mut answer = String::new();
    let read = io::stdin().read_line(&mut answer);
    let is_confirmed = read.is_ok() && answer.trim() == "yes";
    if is_confirmed { Ok(()) } else { Err(Failure::NotConfirmed { done: "resolved" }) }
}

impl Resolve {
    fn settlement(&self) -> Result<Settlement, Failure> {
        let by = self.actor.clone().unwrap_or_else(user);
        let Some(status) = self.status else { return Ok(Settlement::not_executed(&self.reason).by(by)) };
        let mut response = Response::new(self.read_body()?);
        *response.status_mut() = StatusCode::from_u16(status).map_err(|_| Failure::Status(status))?;
        for line in &self.headers {
            let (name, value) = header(line).ok_or_else(|| Failure::Header(line.clone()))?;
            response.headers_mut().append(name, value);
        }
        let settlement = Settlement::executed(response, &self.reason).by(by);
        let settlement = match self.ttl {
            Some(ttl) => settlement.ttl(ttl),
            None => settlement,
        };
        let Some(key) = self.sealing_key()? else { return Ok(settlement) };
        let keys = SealingKeys::from(key).deployment(self.deployment.clone().unwrap_or_default());
        let settlement = settlement.seal_with(keys);
        Ok(match &self.store_name {
            Some(name) => settlement.in_store(name),
            None => settlement,
        })
    }

    fn read_body(&self) -> Result<Vec<u8>, Failure> {
        let body = self.body.as_deref().unwrap_or_default();
        let Some(path) = body.strip_prefix('@') else { return Ok(body.as_bytes().to_vec()) };
        let mut bytes = Vec::new();
        let read = if path == "-" {
            io::stdin().read_to_end(&mut bytes).map(drop)
        } else {
            fs::read(path).map(|read| bytes = read)
        };
        read.map_err(|source| Failure::Body { path: path.to_owned(), source })?;
        Ok(bytes)
    }

    /// Returns the sealing key. The store cannot show whether its registry seals, because nothing in a claim is sealed.
    fn sealing_key(&self) -> Result<Option<SealingKey>, Failure> {
        if self.unsealed {
            return Ok(None);
        }
        secret(self.sealing_key_file.as_ref(), SEALING_KEY)?.ok_or(Failure::Unsealed).map(Some)
    }
}

fn header(line: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = line.split_once(':')?;
    Some((name.trim().parse().ok()?, value.trim().parse().ok()?))
}

/// Returns the name of the user. A service manager or a container may set no name. Then the number of the user is
/// returned, if the system has one.
fn user() -> String {
    let mut variables = ["USER", "LOGNAME", "USERNAME"].into_iter().filter_map(|name| std::env::var(name).ok());
    let named = variables.find(|name| !name.trim().is_empty());
    named.or_else(number_of_user).unwrap_or_else(|| "unknown".to_owned())
}

#[cfg(unix)]
fn number_of_user() -> Option<String> {
    use std::os::unix::fs::MetadataExt as _;

    Some(format!("uid {}", fs::metadata("/proc/self").ok()?.uid()))
}

#[cfg(not(unix))]
fn number_of_user() -> Option<String> {
    None
}
