//! Reads the attribute's tokens as arguments with their values. Each argument must have a known name and occur at most
//! once.

use proc_macro2::TokenStream;
use quote::ToTokens;
use syn::ext::IdentExt;
use syn::parse::{ParseStream, Parser};
use syn::{Expr, Ident, Lit, Token};

use crate::diagnostics::{Diagnostics, listed, nearest};

/// The name of the first internal argument, which the attribute adds when it moves itself behind the other attributes.
pub(crate) const LAST: &str = "__idempotent_last";

/// The arguments that need no value.
pub(crate) const FLAGS: &[&str] = &["shared_scope", "required"];

/// Names that other libraries use for an argument, and the text to write instead.
pub(crate) const SYNONYMS: &[(&[&str], &str)] = &[
    (&["after_failure", "on_crash"], "`after_crash`"),
    (&["status", "status_codes", "statuses"], "`cache`"),
    (&["tenant", "user"], "`caller`"),
    (&["header_name", "key_header"], "`header`"),
    (&["wait", "wait_for", "wait_timeout"], "`in_flight = wait(\"5s\")`"),
    (
        &["lock_timeout", "timeout"],
        "`lease` for how long a dead process holds a key, or `in_flight = wait(\"5s\")` for how long a duplicate waits",
    ),
    (&["lock_ttl"], "`lease`"),
    (&["body_limit", "max_size"], "`max_body`"),
    (&["key_prefix", "name", "namespace", "prefix"], "`scope`"),
    (&["backend", "storage"], "`store`"),
    (&["expiration", "expires", "expires_in", "expiry", "max_age", "retention"], "`ttl`"),
];

/// An argument: `name = value`, or the bare name.
pub(crate) struct Argument {
    pub(crate) name: Ident,
    pub(crate) value: Option<Expr>,
}

/// The arguments as they are written.
pub(crate) struct Arguments {
    pub(crate) is_last: bool,
    valid: &'static [&'static str],
    given: Vec<Argument>,
}

impl Arguments {
    /// Reads the arguments whose names are in `valid`. Everything else is a mistake.
    pub(crate) fn parse(tokens: TokenStream, valid: &'static [&'static str], diagnostics: &mut Diagnostics) -> Self {
        let mut arguments = Self { is_last: false, valid, given: Vec::new() };
        let parser = |input: ParseStream<'_>| {
            while !input.is_empty() {
                if let Err(error) = arguments.parse_one(input, diagnostics) {
                    diagnostics.combine(error);
                    skip_to_comma(input)?;
                }
                if !input.is_empty() {
                    input.parse::<Token![,]>()?;
                }
            }
            Ok(())
        };
        if let Err(error) = parser.parse2(tokens) {
            diagnostics.combine(error);
        }
        arguments
    }

    /// Returns the argument of this name. The name must be a valid one.
    pub(crate) fn get(&self, name: &str) -> Option<&Argument> {
        debug_assert!(self.valid.contains(&name), "{name} is no argument");
        self.given.iter().find(|argument| argument.name == name)
    }

    /// Returns the scope as it is written, for a message that names it. An expression is too long for a message.
    pub(crate) fn scope(&self) -> String {
        let written = self.get("scope").and_then(|scope| scope.value.as_ref());
        written
            .filter(|scope| is_short(scope))
            .map_or_else(|| "\"charges\"".to_owned(), |scope| scope.to_token_stream().to_string())
    }

    fn parse_one(&mut self, input: ParseStream<'_>, diagnostics: &mut Diagnostics) -> syn::Result<()> {
        if !input.peek(Ident::peek_any) {
            return Err(
                input.error(format!("expected the name of an argument; the arguments are {}", listed(self.valid)))
            );
        }
        let name = input.call(Ident::parse_any)?;
        if name == LAST {
            self.is_last = true;
            return Ok(());
        }
        let written = name.to_string();
        let is_known = self.valid.contains(&written.as_str());
        if !is_known {
            let meant = meant(&written, self.valid).map(|meant| format!("; write {meant}")).unwrap_or_default();
            let message = format!("unknown argument `{written}`{meant}\nthe arguments are {}", listed(self.valid));
            diagnostics.error(&name, message);
        } else if self.get(&written).is_some() {
            diagnostics.error(&name, format!("`{written}` is given twice; keep one of them"));
        }
        let value = if input.peek(Token![=]) {
            input.parse::<Token![=]>()?;
            if input.is_empty() || input.peek(Token![,]) {
                return Err(syn::Error::new(name.span(), format!("`{written}` has no value after `=`")));
            }
            Some(input.parse()?)
        } else if input.is_empty() || input.peek(Token![,]) {
            None
        } else {
            let message = if FLAGS.contains(&&*written) {
                flag_takes(&written)
            } else {
                format!("expected `=` and a value after `{written}`")
            };
            return Err(input.error(message));
        };
        if is_known && self.get(&written).is_none() {
            self.given.push(Argument { name, value });
        }
        Ok(())
    }
}

/// Returns whether the value is a string or a path.
fn is_short(value: &Expr) -> bool {
    match value {
        Expr::Lit(literal) => matches!(literal.lit, Lit::Str(_)),
        Expr::Group(group) => is_short(&group.expr),
        value => matches!(value, Expr::Path(_)),
    }
}

/// Returns the message for a flag with another value.
pub(crate) fn flag_takes(flag: &str) -> String {
    format!("`{flag}` is `true` or `false`; write `{flag}`")
}

/// Returns a hint at the argument that an unknown name probably means.
fn meant(written: &str, valid: &[&str]) -> Option<String> {
    let synonym = SYNONYMS.iter().find(|(words, _)| words.contains(&written));
    synonym.map(|(_, meant)| (*meant).to_owned()).or_else(|| nearest(written, valid).map(|name| format!("`{name}`")))
}

fn skip_to_comma(input: ParseStream<'_>) -> syn::Result<()> {
    while !input.is_empty() && !input.peek(Token![,]) {
        input.parse::<proc_macro2::TokenTree>()?;
    }
    Ok(())
}
