//! From the tokens of the attribute and its item to those that stand in their place.

use proc_macro2::TokenStream;

use crate::args::Arguments;
use crate::diagnostics::Diagnostics;
use crate::handler::Handler;
use crate::model::{self, Model};
use crate::{expand, fallback};

pub(crate) fn rewrite(arguments: &TokenStream, item: &TokenStream) -> TokenStream {
    let mut diagnostics = Diagnostics::new();
    let parsed = Arguments::parse(arguments.clone(), model::ARGUMENTS, &mut diagnostics);
    let model = Model::new(&parsed, &mut diagnostics);
    let handler = Handler::parse(item.clone());
    match &handler {
        Ok(handler) => {
            handler.check(&mut diagnostics);
            if let Some(isolation) = parsed.get("isolation")
                && !handler.names_a_transaction()
            {
                let message =
                    "`isolation` is that of the handler's `Tx`, and no argument names one; take `mut tx: Tx<Postgres>`";
                diagnostics.error(&isolation.name, message);
            }
        }
        Err(error) => diagnostics.combine(error.clone()),
    }
    match (diagnostics.into_result(), handler) {
        (Ok(()), Ok(handler)) if handler.has_other_macros() && !parsed.is_last => {
            expand::behind_the_others(&handler, arguments)
        }
        (Ok(()), Ok(handler)) => expand::expand(&handler, &model),
        (Err(errors), _) | (Ok(()), Err(errors)) => fallback::fallback(&errors, item),
    }
}
