//! The line between the arguments that are extracted before the claim and those that are extracted after it.

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Expr, ExprPath, FnArg, Ident, Macro, Pat, PatIdent, PatType};

use crate::diagnostics::{Diagnostics, listed, nearest};
use crate::handler::Handler;
use crate::model::Model;
use crate::presence::condition;
use crate::values::ClaimAfter;

/// The position of the line.
#[derive(Clone, Copy)]
pub(crate) struct ClaimLine {
    /// The number of arguments that axum extracts. The others become a single last argument of the emitted function.
    pub(crate) by_axum: usize,
    pub(crate) carried: Carried,
}

/// When the carried arguments are extracted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carried {
    BeforeClaim,
    AfterClaim,
    /// The type decides: a plain body extractor of axum comes after the claim.
    ByType,
}

impl ClaimLine {
    /// Reads the position from the attribute, and notes mistakes.
    pub(crate) fn new(handler: &Handler, model: &Model, diagnostics: &mut Diagnostics) -> Self {
        let arguments: Vec<&PatType> = handler.arguments().collect();
        let variables: Vec<Vec<Ident>> = arguments.iter().map(|argument| variables(&argument.pat)).collect();
        let last = arguments.len().saturating_sub(1);
        let mentioned: Vec<Mention<'_>> =
            model.expressions().filter_map(|(name, expression)| Mention::last(name, expression, &variables)).collect();
        let after = match &model.claim_after {
            // A handler without arguments has nothing to extract.
            None if arguments.is_empty() => 0,
            None if mentioned.iter().any(|mention| mention.argument == last) => arguments.len(),
            None => return Self { by_axum: last, carried: Carried::ByType },
            Some(ClaimAfter::None) => 0,
            Some(ClaimAfter::Argument(name)) => {
                let Some(index) = variables.iter().position(|bound| bound.contains(name)) else {
                    diagnostics.error(name, unknown(name, &variables));
                    return Self { by_axum: last, carried: Carried::ByType };
                };
                index + 1
            }
        };
        for mention in mentioned.iter().filter(|mention| mention.argument >= after) {
            let Mention { of, variable, at, .. } = mention;
            let message = format!(
                "`{of}` is evaluated before the claim, and `{variable}` is extracted after it; write `claim_after = {variable}`"
            );
            diagnostics.error(at, message);
        }
        check_presence(arguments.get(after..last).unwrap_or_default(), diagnostics);
        if after == arguments.len() && after > 0 {
            Self { by_axum: last, carried: Carried::BeforeClaim }
        } else {
            Self { by_axum: after, carried: Carried::AfterClaim }
        }
    }
}

/// Several arguments become one tuple, and no attribute can leave a type out of a tuple.
fn check_presence(merged: &[&PatType], diagnostics: &mut Diagnostics) {
    let conditional = |argument: &&PatType| argument.attrs.iter().find(|it| condition(it).is_some()).cloned();
    for conditional in merged.iter().filter_map(conditional) {
        diagnostics.error(
            conditional,
            "an argument after the claim cannot be compiled out; move it before the one that `claim_after` names, or put \
             `#[cfg]` on the function",
        );
    }
}

fn unknown(name: &Ident, variables: &[Vec<Ident>]) -> String {
    let names: Vec<String> = variables.iter().flatten().map(ToString::to_string).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    if names.is_empty() {
        return "`claim_after` names no argument, and the handler has none with a name; write `claim_after = none`"
            .to_owned();
    }
    let meant = nearest(&name.to_string(), &names).map(|meant| format!("; write `{meant}`")).unwrap_or_default();
    format!("`claim_after` names no argument{meant}\nthe arguments are {}, or `none`", listed(&names))
}

/// Returns the variables that a pattern binds.
pub(crate) fn variables(pattern: &Pat) -> Vec<Ident> {
    struct Variables(Vec<Ident>);
    impl<'ast> Visit<'ast> for Variables {
        fn visit_pat_ident(&mut self, pattern: &'ast PatIdent) {
            self.0.push(pattern.ident.clone());
            visit::visit_pat_ident(self, pattern);
        }
    }
    let mut variables = Variables(Vec::new());
    variables.visit_pat(pattern);
    variables.0
}

/// The last argument that an expression mentions.
struct Mention<'a> {
    argument: usize,
    variable: &'a Ident,
    /// The attribute's argument that contains the expression.
    of: &'static str,
    at: &'a Expr,
}

impl<'a> Mention<'a> {
    fn last(of: &'static str, expression: &'a Expr, variables: &'a [Vec<Ident>]) -> Option<Self> {
        variables.iter().enumerate().rev().find_map(|(argument, bound)| {
            let variable = bound.iter().find(|variable| mentions(expression, variable))?;
            Some(Self { argument, variable, of, at: expression })
        })
    }
}

/// Returns whether the expression may use the variable. In a macro call, only the tokens are known.
pub(crate) fn mentions(expression: &Expr, variable: &Ident) -> bool {
    struct Mentions<'a>(&'a Ident, bool);
    impl<'ast> Visit<'ast> for Mentions<'_> {
        fn visit_expr(&mut self, expression: &'ast Expr) {
            if let Expr::Verbatim(tokens) = expression {
                self.1 |= tokens_mention(tokens.clone(), self.0);
            }
            visit::visit_expr(self, expression);
        }

        fn visit_expr_path(&mut self, path: &'ast ExprPath) {
            self.1 |= path.path.get_ident() == Some(self.0);
            visit::visit_expr_path(self, path);
        }

        fn visit_macro(&mut self, call: &'ast Macro) {
            self.1 |= tokens_mention(call.tokens.clone(), self.0);
        }
    }
    let mut found = Mentions(variable, false);
    found.visit_expr(expression);
    found.1
}

/// A field or a method of that name does not count, but the `{name}` of a format string does.
fn tokens_mention(tokens: TokenStream, variable: &Ident) -> bool {
    let mut is_member = false;
    tokens.into_iter().any(|token| {
        let was_member =
            std::mem::replace(&mut is_member, matches!(&token, TokenTree::Punct(dot) if dot.as_char() == '.'));
        match token {
            TokenTree::Ident(ident) => !was_member && ident == *variable,
            TokenTree::Group(group) => tokens_mention(group.stream(), variable),
            TokenTree::Literal(literal) => {
                let (text, name) = (literal.to_string(), variable.to_string());
                let mut words = text.split(|char: char| !(char.is_alphanumeric() || char == '_'));
                text.contains('{') && words.any(|word| word == name)
            }
            TokenTree::Punct(_) => false,
        }
    })
}

/// Joins several arguments into one, for a macro that calls the function with one value for each argument.
pub(crate) fn merged(arguments: &[&PatType]) -> FnArg {
    let (patterns, types) = (arguments.iter().map(|it| &it.pat), arguments.iter().map(|it| &it.ty));
    let lints = arguments.iter().flat_map(|it| &it.attrs);
    syn::parse_quote!(#(#lints)* (#(#patterns,)*): (#(#types,)*))
}
