//! The attribute: any tokens are accepted as input, and the output is Rust or errors.

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use quote::ToTokens;
use syn::ItemFn;

use crate::rewrite::rewrite;

/// The first line of the input is the attribute's arguments, the rest is its item.
///
/// For any tokens, the output is a function in the handler's place, or errors and the unchanged item. If the tokens of
/// a handler parse, its rewritten form parses too and has the same name. If the attribute moves itself behind other
/// attributes, the moved form parses too, and is accepted when it is expanded.
///
/// # Panics
///
/// When the invariant does not hold.
pub fn attribute(bytes: &[u8]) {
    let Some((arguments, item)) = str::from_utf8(bytes).ok().and_then(|text| text.split_once('\n')) else { return };
    let (Some(arguments), Some(item)) = (tokens(arguments), tokens(item)) else { return };

    let written = rewrite(&arguments, &item);

    match after_errors(&written) {
        Some(rest) => assert_eq!(rest.to_string(), item.to_string(), "the item is left as it was"),
        None => check_accepted(&item, &written),
    }
}

fn check_accepted(item: &TokenStream, written: &TokenStream) {
    let Ok(handler) = syn::parse2::<ItemFn>(item.clone()) else {
        // The body is incomplete code, for which the compiler's messages are better.
        return;
    };
    // The handler is parsed again from its tokens, because the empty list of generics in `fn pay<>()` is lost.
    let handler: ItemFn = syn::parse2(handler.to_token_stream()).expect("what was read can be written");
    let guarded: ItemFn =
        syn::parse2(written.clone()).unwrap_or_else(|error| panic!("{error} in what became of a function:\n{written}"));
    assert_eq!(guarded.sig.ident, handler.sig.ident);
    assert_eq!(guarded.vis, handler.vis);
    assert_eq!(guarded.sig.generics, handler.sig.generics);
    let is_put_behind_others = guarded.attrs.iter().any(is_ours);
    assert_eq!(guarded.sig.asyncness.is_some(), is_put_behind_others, "rewritten, it returns its future");
    assert_eq!(guarded.sig.inputs.len(), handler.sig.inputs.len().max(1));

    let Some(last) = guarded.attrs.last().filter(|attribute| is_ours(attribute)) else { return };
    let arguments = last.meta.require_list().expect("it has arguments").tokens.clone();
    let mut turn = guarded.clone();
    turn.attrs.pop();
    assert_eq!(turn, handler, "it is untouched");
    // When the attribute is expanded, the others are gone.
    turn.attrs.clear();
    let rewritten = rewrite(&arguments, &turn.to_token_stream());
    assert!(after_errors(&rewritten).is_none(), "accepted at first and then rejected:\n{rewritten}");
    syn::parse2::<ItemFn>(rewritten).expect("a function");
}

fn is_ours(attribute: &syn::Attribute) -> bool {
    attribute.path().to_token_stream().to_string().ends_with("__private :: idempotent")
}

/// The tokens after the errors, if there are errors. Each error is `::core::compile_error! { "…" }`.
fn after_errors(written: &TokenStream) -> Option<TokenStream> {
    let mut rest: &[TokenTree] = &written.clone().into_iter().collect::<Vec<_>>();
    let all = rest;
    while let [_, _, core, _, _, name, _, TokenTree::Group(message), following @ ..] = rest
        && core.to_string() == "core"
        && name.to_string() == "compile_error"
    {
        assert_eq!(message.delimiter(), Delimiter::Brace);
        let message: syn::LitStr = syn::parse2(message.stream()).expect("a message");
        assert!(!message.value().is_empty());
        rest = following;
    }
    (rest.len() < all.len()).then(|| rest.iter().cloned().collect())
}

/// The deepest nesting of the input. The compiler rejects deeper nesting before an attribute sees it, and deep
/// recursion would overflow the stack here.
const DEEPEST: usize = 48;

/// The text as tokens, if the compiler would pass it to an attribute.
fn tokens(text: &str) -> Option<TokenStream> {
    let mut depth = 0_usize;
    for character in text.chars() {
        match character {
            '(' | '[' | '{' | '<' | '!' | '&' | '*' | '-' | '|' => depth += 1,
            ')' | ']' | '}' | '>' | ',' | ';' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEEPEST {
            return None;
        }
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::{after_errors, tokens};
    use crate::args::Arguments;
    use crate::diagnostics::Diagnostics;
    use crate::model::ARGUMENTS;
    use crate::rewrite::rewrite;

    /// The arguments that a seed sets. The attribute must accept the seed.
    fn names(seed: &str) -> Vec<&'static str> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds/attribute").join(seed);
        let text = fs::read_to_string(path).expect("the seed");
        let (arguments, item) = text.split_once('\n').expect("its arguments have a line of their own");
        let (arguments, item) = (tokens(arguments).expect("tokens"), tokens(item).expect("tokens"));
        let written = rewrite(&arguments, &item);
        assert!(after_errors(&written).is_none(), "{seed} is rejected:\n{written}");
        let mut diagnostics = Diagnostics::new();
        let parsed = Arguments::parse(arguments, ARGUMENTS, &mut diagnostics);
        diagnostics.into_result().expect("it is accepted");
        ARGUMENTS.iter().copied().filter(|name| parsed.get(name).is_some()).collect()
    }

    #[test]
    fn seeds_are_accepted_and_name_every_argument() {
        // `key` excludes `header`, and `cache_if` excludes `cache`, so one seed cannot set all arguments.
        let exclusive = ["cache_if", "key"];
        let others: Vec<_> = ARGUMENTS.iter().copied().filter(|name| !exclusive.contains(name)).collect();
        assert_eq!(names("every-argument"), others);
        let rest = names("key-and-predicate");
        assert!(exclusive.iter().all(|name| rest.contains(name)), "{rest:?}");
    }
}
