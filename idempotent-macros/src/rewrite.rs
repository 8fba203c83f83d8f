//! Turns the tokens of the attribute and its item into the tokens that replace them.

use proc_macro2::TokenStream;

use syn::Expr;

use crate::args::{Argument, Arguments};
use crate::claim_line::ClaimLine;
use crate::diagnostics::Diagnostics;
use crate::handler::Handler;
use crate::model::{self, Model};
use crate::reader::{string_of, word_of};
use crate::{expand, fallback};

pub(crate) fn rewrite(arguments: &TokenStream, item: &TokenStream) -> TokenStream {
    let mut diagnostics = Diagnostics::new();
    let parsed = Arguments::parse(arguments.clone(), model::ARGUMENTS, &mut diagnostics);
    let model = Model::new(&parsed, &mut diagnostics);
    let checked = Handler::parse(item.clone()).map(|handler| {
        handler.check(&mut diagnostics);
        check_beside(&parsed, &handler, &mut diagnostics);
        check_constants(&model, &handler, &mut diagnostics);
        let line = ClaimLine::new(&handler, &model, &mut diagnostics);
        (handler, line)
    });
    if let Err(error) = &checked {
        diagnostics.combine(error.clone());
    }
    match (diagnostics.into_result(), checked) {
        (Ok(()), Ok((handler, line))) if handler.has_other_macros() && !parsed.is_last => {
            expand::behind_the_others(&handler, &model, line, arguments)
        }
        (Ok(()), Ok((handler, line))) => expand::expand(&handler, &model, line),
        (Err(errors), _) | (Ok(()), Err(errors)) => fallback::fallback(&errors, item),
    }
}

/// Checks the attribute's arguments against the handler.
fn check_beside(parsed: &Arguments, handler: &Handler, diagnostics: &mut Diagnostics) {
    for name in ["key", "caller"] {
        if let Some(text) = parsed.get(name).and_then(|argument| text_of_expression(argument, handler)) {
            let message = format!(
                "`{name}` is an expression, and this is the same text for every request; write `{name} = {}`",
                text.1
            );
            diagnostics.error(text.0, message);
        } else if let ("key", Some(value)) = (name, parsed.get(name).and_then(text_of_argument)) {
            let message = "`key` is an expression over the handler's arguments, and this is the same text for every \
                           request; write `header = \"x-request-id\"` if the key comes in another header";
            diagnostics.error(value, message);
        }
    }
    if let Some(caller) = parsed.get("caller").and_then(|argument| argument.value.as_ref())
        && matches!(word_of(caller).as_deref(), Some("none" | "None"))
        && !handler.binds_any_of(caller)
    {
        diagnostics.error(
            caller,
            "`caller` is an expression, which needs a type; leave `caller` out, or write `None::<String>`",
        );
    }
    if let Some(isolation) = parsed.get("isolation")
        && !handler.names_a_transaction()
    {
        let message =
            "`isolation` is that of the handler's `Tx`, and no argument names one; take `mut tx: Tx<Postgres>`";
        diagnostics.error(&isolation.name, message);
    }
}

/// Checks that constants use no variable of the handler: a policy is known before any request arrives.
fn check_constants(model: &Model, handler: &Handler, diagnostics: &mut Diagnostics) {
    for (name, constant) in model.constants() {
        if handler.binds_any_of(constant.expression()) {
            let message = format!(
                "`{name}` is one value for all requests, and this is an argument of the handler; write a constant such as `{}`",
                name.to_uppercase()
            );
            diagnostics.error(constant.expression(), message);
        }
    }
}

fn text_of_argument(argument: &Argument) -> Option<&Expr> {
    argument.value.as_ref().filter(|value| string_of(value).is_some())
}

/// Returns a string whose text is an expression over the handler's variables, and that text.
fn text_of_expression<'a>(argument: &'a Argument, handler: &Handler) -> Option<(&'a Expr, String)> {
    let value = argument.value.as_ref()?;
    let text = string_of(value)?;
    let is_meant_as_one = match syn::parse_str::<Expr>(&text).ok()? {
        Expr::Path(path) => path.path.get_ident().is_some_and(|ident| handler.binds(ident)),
        Expr::Lit(_) => false,
        expression => handler.binds_any_of(&expression),
    };
    is_meant_as_one.then_some((value, text))
}
