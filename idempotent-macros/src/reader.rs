//! Reads the value of one argument: words, strings, numbers, units, expressions.

use std::time::Duration;

use syn::spanned::Spanned;
use syn::{Expr, Lit, LitStr, Path};

use crate::args::{Argument, Arguments, FLAGS, flag_takes};
use crate::constant::{Kind, Value, constant};
use crate::diagnostics::{Diagnostics, nearest};
use crate::runtime::Runtime;
use crate::units::{duration, size_in_bytes};
use crate::values::{Choice, ClaimAfter, Fingerprint, InFlight, Isolation};

const ONLY: &str =
    "`only` takes one expression, or several as a tuple; write `fingerprint = only((&order.amount, &order.currency))`";

/// Reads arguments one by one. A wrong argument is reported, and then counts as absent.
pub(crate) struct Reader<'a> {
    pub(crate) arguments: &'a Arguments,
    pub(crate) diagnostics: &'a mut Diagnostics,
}

impl Reader<'_> {
    /// Returns the value of the argument, if it is given.
    pub(crate) fn value(&mut self, name: &str, example: &str) -> Option<Expr> {
        let Argument { name: at, value } = self.arguments.get(name)?;
        if value.is_none() {
            self.diagnostics.error(at, format!("`{name}` needs a value; write `{name} = {example}`"));
        }
        value.as_ref().map(ungrouped).cloned()
    }

    pub(crate) fn expression(&mut self, name: &str, example: &str) -> Option<Expr> {
        self.value(name, example)
    }

    pub(crate) fn string(&mut self, name: &str, example: &str) -> Option<(String, Expr)> {
        let value = self.value(name, &format!("\"{example}\""))?;
        let Some(text) = string_of(&value) else {
            self.diagnostics.error(&value, format!("`{name}` must be a string; write `{name} = \"{example}\"`"));
            return None;
        };
        Some((text, value))
    }

    /// Reads a name that people see in logs and stores.
    pub(crate) fn name(&mut self, name: &str, kind: Kind, example: &str) -> Option<Value<String>> {
        let value = self.value(name, &format!("\"{example}\""))?;
        let example = word_of(&value).unwrap_or_else(|| example.to_owned());
        self.read(name, kind, &value, &format!("{name} = \"{example}\""), |text| {
            idempotent_policy::check_name(text).map(|()| text.to_owned()).map_err(str::to_owned)
        })
    }

    pub(crate) fn ttl(&mut self) -> Option<Value<Duration>> {
        let value = self.value("ttl", "\"24h\"")?;
        self.duration("ttl", Kind::TTL, &value, "ttl = \"24h\"", idempotent_policy::check_ttl)
    }

    pub(crate) fn lease(&mut self) -> Option<Value<Duration>> {
        let value = self.value("lease", "\"30s\"")?;
        self.duration("lease", Kind::LEASE, &value, "lease = \"30s\"", idempotent_policy::check_lease)
    }

    fn duration(
        &mut self,
        name: &str,
        kind: Kind,
        value: &Expr,
        example: &str,
        check: fn(Duration) -> Result<(), &'static str>,
    ) -> Option<Value<Duration>> {
        self.read(name, kind, value, example, |text| {
            let read = duration(text).map_err(|reason| format!("is no duration: {reason}"))?;
            check(read).map(|()| read).map_err(str::to_owned)
        })
    }

    /// Reads a text that is checked here, or a constant that the compiler checks.
    fn read<T>(
        &mut self,
        name: &str,
        kind: Kind,
        value: &Expr,
        example: &str,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<Value<T>> {
        let read = match string_of(value) {
            Some(text) => read(&text).map(Value::Literal).map_err(|wrong| format!("{wrong}; write `{example}`")),
            None => constant(kind, value, example, &self.arguments.scope()).map(Value::Constant),
        };
        read.map_err(|wrong| self.diagnostics.error(value, format!("`{name}` {wrong}"))).ok()
    }

    pub(crate) fn flag(&mut self, name: &str) -> bool {
        debug_assert!(FLAGS.contains(&name), "{name} is no flag");
        match self.arguments.get(name).map(|argument| argument.value.as_ref().map(ungrouped)) {
            None => false,
            Some(None) => true,
            Some(Some(Expr::Lit(literal))) if matches!(literal.lit, Lit::Bool(_)) => {
                matches!(&literal.lit, Lit::Bool(literal) if literal.value)
            }
            Some(Some(other)) => {
                self.diagnostics.error(other, flag_takes(name));
                false
            }
        }
    }

    /// Reads one of two words. The first word is the default.
    pub(crate) fn choice(&mut self, name: &str, words: [&'static str; 2]) -> Choice {
        let example = format!("\"{}\"", words[1]);
        let value = self.value(name, &example)?;
        let word = string_of(&value).or_else(|| word_of(&value));
        if let Some(at) = word.as_deref().and_then(|word| words.iter().position(|valid| *valid == word)) {
            return (at == 1).then_some(words[1]);
        }
        let meant = word.and_then(|word| nearest(&word, &words)).unwrap_or(words[1]);
        let message = format!("`{name}` is \"{}\" or \"{}\"; write `{name} = \"{meant}\"`", words[0], words[1]);
        self.diagnostics.error(value, message);
        None
    }

    /// Reads a number of `what`, such as characters.
    pub(crate) fn number(&mut self, name: &str, what: &str, example: &str) -> Option<usize> {
        let value = self.value(name, example)?;
        if let Expr::Lit(literal) = &value
            && let Lit::Int(number) = &literal.lit
        {
            // A number that is too large for its type is also larger than every limit.
            return Some(number.base10_parse().unwrap_or(usize::MAX));
        }
        let meant = string_of(&value).filter(|text| text.parse::<u8>().is_ok_and(|number| number > 0));
        let meant = meant.as_deref().unwrap_or(example);
        self.diagnostics.error(value, format!("`{name}` must be a number of {what}; write `{name} = {meant}`"));
        None
    }

    pub(crate) fn claim_after(&mut self) -> Option<ClaimAfter> {
        let value = self.value("claim_after", "user")?;
        if is_word(&value, "none") {
            return Some(ClaimAfter::None);
        }
        if let Expr::Path(path) = &value
            && let Some(name) = path.path.get_ident()
        {
            return Some(ClaimAfter::Argument(name.clone()));
        }
        let meant = string_of(&value).filter(|text| syn::parse_str::<syn::Ident>(text).is_ok());
        let message = format!(
            "`claim_after` is the name of an argument, or `none`; write `claim_after = {}`",
            meant.as_deref().unwrap_or("user")
        );
        self.diagnostics.error(value, message);
        None
    }

    pub(crate) fn fingerprint(&mut self) -> Fingerprint {
        match self.value("fingerprint", "(&order.amount, &order.currency)") {
            None => Fingerprint::Request,
            Some(value) if is_word(&value, "none") => Fingerprint::None,
            Some(value) if is_word(&value, "json") => Fingerprint::Json,
            Some(value) if string_of(&value).is_some() => {
                let text = string_of(&value).unwrap_or_default();
                let meant = nearest(&text, &["json", "none"]).unwrap_or("json");
                let message = format!(
                    "`fingerprint` is `json`, `none` or an expression over the handler's arguments, and this is the same \
                     text for every request; write `fingerprint = {meant}` or the expression without quotes"
                );
                self.diagnostics.error(value, message);
                Fingerprint::Request
            }
            Some(value) if is_word(&value, "only") => {
                self.diagnostics.error(value, ONLY);
                Fingerprint::Request
            }
            Some(Expr::Call(call)) if is_word(&call.func, "only") => {
                let mut values = call.args.iter();
                if let (Some(value), None) = (values.next(), values.next()) {
                    return Fingerprint::Only(value.clone());
                }
                self.diagnostics.error(call, ONLY);
                Fingerprint::Request
            }
            Some(value) => Fingerprint::Expression(value),
        }
    }

    pub(crate) fn in_flight(&mut self) -> InFlight {
        self.wait().map_or(InFlight::Reject, InFlight::Wait)
    }

    fn wait(&mut self) -> Option<Value<Duration>> {
        let value = self.value("in_flight", "wait(\"5s\")")?;
        if is_word(&value, "reject") {
            return None;
        }
        if let Expr::Call(call) = &value
            && is_word(&call.func, "wait")
            && let (Some(limit), 1) = (call.args.first(), call.args.len())
        {
            const EXAMPLE: &str = "in_flight = wait(\"5s\")";
            return self.duration("wait", Kind::WAIT, ungrouped(limit), EXAMPLE, idempotent_policy::check_wait);
        }
        self.diagnostics.error(value, "`in_flight` is `reject` or `wait(…)`; write `in_flight = wait(\"5s\")`");
        None
    }

    pub(crate) fn isolation(&mut self) -> Option<Isolation> {
        const WORDS: [&str; 2] = ["serializable", "repeatable_read"];
        let value = self.value("isolation", "\"serializable\"")?;
        let word = string_of(&value).or_else(|| word_of(&value));
        match word.as_deref() {
            Some("serializable") => Some(Isolation::Serializable),
            Some("repeatable_read") => Some(Isolation::RepeatableRead),
            _ => {
                let meant = word.and_then(|word| nearest(&word, &WORDS)).unwrap_or(WORDS[0]);
                let message = format!(
                    "`isolation` is \"serializable\" or \"repeatable_read\"; write `isolation = \"{meant}\"`, or remove it \
                     for the database's default"
                );
                self.diagnostics.error(value, message);
                None
            }
        }
    }

    pub(crate) fn runtime(&mut self) -> Runtime {
        const EXAMPLE: &str = "idem";
        let Some((text, at)) = self.string("crate", EXAMPLE) else { return Runtime::of_manifest() };
        // The path has the span of the string, so that the compiler reports a wrong path at the string.
        let path = LitStr::new(&text, at.span()).parse_with(Path::parse_mod_style);
        let Ok(path) = path else {
            let message = format!("`crate` must be a path to the runtime; write `crate = \"{EXAMPLE}\"`");
            self.diagnostics.error(at, message);
            return Runtime::of_manifest();
        };
        Runtime::at_path(&path)
    }

    pub(crate) fn max_body(&mut self) -> Option<Value<usize>> {
        let value = self.value("max_body", "\"4MiB\"")?;
        self.read("max_body", Kind::MAX_BODY, &value, "max_body = \"4MiB\"", |text| {
            size_in_bytes(text).map_err(|reason| format!("is no size: {reason}"))
        })
    }
}

/// Returns the value without the invisible group that a `macro_rules!` puts around its `$value:expr`.
pub(crate) fn ungrouped(mut value: &Expr) -> &Expr {
    while let Expr::Group(group) = value {
        value = &group.expr;
    }
    value
}

pub(crate) fn string_of(value: &Expr) -> Option<String> {
    match ungrouped(value) {
        Expr::Lit(literal) => match &literal.lit {
            Lit::Str(text) => Some(text.value()),
            _ => None,
        },
        _ => None,
    }
}

pub(crate) fn word_of(value: &Expr) -> Option<String> {
    match ungrouped(value) {
        Expr::Path(path) => path.path.get_ident().map(ToString::to_string),
        _ => None,
    }
}

/// Returns whether the value is this word of the attribute, bare or quoted.
pub(crate) fn is_word(value: &Expr, word: &str) -> bool {
    word_of(value).or_else(|| string_of(value)).as_deref() == Some(word)
}
