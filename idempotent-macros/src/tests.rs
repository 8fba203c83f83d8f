//! Rules for every expansion, whatever runtime it is compiled with.

use proc_macro2::{TokenStream, TokenTree};
use quote::{ToTokens, format_ident, quote};
use syn::{File, Item, ItemFn, parse_quote};

use crate::args::SYNONYMS;
use crate::model::ARGUMENTS;
use crate::rewrite::rewrite;

fn policy() -> TokenStream {
    quote! {
        scope = "charges", ttl = "1h30m", cache = [201, 400..500, "5xx"], header = "x-request-id", required,
        min_key_length = 16, key_format = "uuid",
        methods = [POST], caller = user.id, fingerprint = (&order.amount, user.id), in_flight = wait("5s"), lease = "10s",
        after_crash = "reject", max_body = "64KiB", oversize = "rerun", keep_headers = ["set-cookie"],
        stream = "pass", drop_headers = ["x-trace"], store = "payments", on_store_error = "run", isolation = "serializable"
    }
}

fn handler() -> ItemFn {
    parse_quote! {
        /// Charges a card.
        pub(crate) async fn create_charge<L: Ledger>(
            State(ledger): State<L>,
            mut tx: Tx<Postgres>,
            user: User,
            Json(order): Json<NewCharge>,
        ) -> Result<(StatusCode, Json<Charge>), ApiError> {
            Ok((StatusCode::CREATED, Json(ledger.charge(&mut tx, user.id, order).await?)))
        }
    }
}

fn items(arguments: &TokenStream, handler: &ItemFn) -> Vec<Item> {
    let expansion = rewrite(arguments, &handler.to_token_stream());
    syn::parse2::<File>(expansion).expect("an expansion is items").items
}

fn function(items: &[Item]) -> &ItemFn {
    let found = items.iter().rev().find_map(|item| if let Item::Fn(function) = item { Some(function) } else { None });
    found.expect("the expansion contains the function")
}

fn text(tokens: &impl ToTokens) -> String {
    tokens.to_token_stream().to_string()
}

fn words(tokens: TokenStream, found: &mut Vec<String>) {
    for token in tokens {
        match token {
            TokenTree::Group(group) => words(group.stream(), found),
            TokenTree::Punct(_) => {}
            word => found.push(word.to_string()),
        }
    }
}

#[test]
fn the_function_stays_one_that_is_called_the_same() {
    let (written, items) = (handler(), items(&policy(), &handler()));
    let expanded = function(&items);
    assert_eq!(expanded.sig.ident, written.sig.ident);
    assert_eq!(text(&expanded.sig.generics), text(&written.sig.generics));
    assert_eq!(expanded.sig.inputs.len(), written.sig.inputs.len());
    assert_eq!(text(&expanded.vis), text(&written.vis));
    let documentation = text(&written.attrs[0]);
    assert!(expanded.attrs.iter().any(|attribute| text(attribute) == documentation));
}

#[test]
fn nothing_of_the_runtime_is_named_but_what_is_private_to_both() {
    let mut found = Vec::new();
    words(rewrite(&policy(), &handler().to_token_stream()), &mut found);
    let after: Vec<_> = found.windows(2).filter(|pair| pair[0] == "idempotent_runtime").map(|pair| &pair[1]).collect();
    assert!(!after.is_empty());
    assert!(after.iter().all(|word| *word == "__private"), "{after:?}");
}

/// Checks that every argument is read. An argument that is not read would be accepted and have no effect.
#[test]
fn every_argument_is_read() {
    let handler = handler().to_token_stream();
    let expansion = |arguments: &TokenStream| rewrite(arguments, &handler).to_string();
    // The documentation of a function is only in its first expansion, so it is expanded once before.
    expansion(&TokenStream::new());
    let without = expansion(&TokenStream::new());
    for name in ARGUMENTS {
        // The argument is a flag, or its value is missing.
        let argument = format_ident!("{name}").into_token_stream();
        assert!(expansion(&argument) != without, "`{name}` is not read");
    }
}

#[test]
fn synonyms_lead_to_arguments() {
    for (words, meant) in SYNONYMS {
        let name = meant.trim_start_matches('`').split([' ', '`']).next().expect("a name");
        assert!(ARGUMENTS.contains(&name), "{meant}");
        assert!(words.iter().all(|word| !ARGUMENTS.contains(word)), "{words:?}");
    }
}

#[test]
fn nothing_of_the_runtime_is_named_but_by_the_given_path() {
    let mut found = Vec::new();
    let policy = policy();
    words(rewrite(&quote!(#policy, crate = "facade::idem"), &handler().to_token_stream()), &mut found);
    assert!(found.windows(3).any(|words| words == ["facade", "idem", "__private"]));
    assert!(!found.iter().any(|word| word == "idempotent_runtime"), "{found:?}");
}

#[test]
fn mistakes_are_told_at_once_beside_the_unchanged_function() {
    let arguments = quote! { scpoe = "charges", ttl = "soon", cache = [999], max_body = "4", after_crash = "panic" };
    let items = items(&arguments, &handler());
    let errors = items.iter().filter(|item| text(item).contains("compile_error"));
    assert_eq!(errors.count(), 5);
    assert_eq!(text(function(&items)), text(&handler()));
}

/// Checks the expansion for an editor, which requests completions while the body is being typed. Each token must appear
/// once, at its place, and the attribute must report no error.
#[test]
fn half_typed_bodies_stay_as_they_are() {
    for body in
        ["let z = order.", "let z = order.amount.", "order.", "match order {", "if order.amount >", "Ok(order.am"]
    {
        // Editors complete code whose brackets are closed.
        let closed = format!("{{ {body} {} }}", closing(body));
        let item: TokenStream =
            format!("async fn pay(user: User, Json(order): Json<Order>) -> String {closed}").parse().expect("tokens");
        for arguments in [quote!(), quote!(caller = user.id), quote!(claim_after = none), quote!(ttl = TTL)] {
            let expansion = rewrite(&arguments, &item).to_string();
            assert!(!expansion.contains("compile_error"), "{body}: {expansion}");
            let TokenTree::Group(body) = item.clone().into_iter().last().expect("a body") else { panic!("no body") };
            assert_eq!(expansion.matches(&body.stream().to_string()).count(), 1, "{body}: {expansion}");
        }
    }
}

fn closing(text: &str) -> String {
    let closing = |char| match char {
        '(' => Some(')'),
        '{' => Some('}'),
        _ => None,
    };
    text.chars().rev().filter_map(closing).collect()
}

#[test]
fn half_typed_arguments_leave_the_function_as_it_was() {
    for arguments in ["ttl =", "ttl = TTL, sco", "caller = user.", "scope = \"charges\", max_body = settings::"] {
        let expansion = rewrite(&arguments.parse().expect("tokens"), &handler().to_token_stream()).to_string();
        assert!(expansion.contains("compile_error"), "{arguments}: {expansion}");
        assert!(expansion.ends_with(&text(&handler())), "{arguments}: {expansion}");
    }
}
