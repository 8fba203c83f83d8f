//! The handler's new form.
//!
//! ```text
//! // Input:
//! async fn pay(user: User, Json(order): Json<Order>) -> R { .. }
//! // Output:
//! fn pay(user: User, last: Guarded<Json<Order>>) -> Completion {
//!     let (gate, last) = open(&POLICY, Probe::of(&last).idempotent_extraction(), last);
//!     gate.run(async move { let user = user; let Json(order) = last.take(); .. }, into_response)
//! }
//! ```
//!
//! The arguments after the claim are one tuple, `Guarded<(Row, Json<Order>)>`.

use proc_macro2::{Delimiter, Group, Ident, Punct, Spacing, Span, TokenStream, TokenTree};
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::ext::IdentExt;
use syn::punctuated::Punctuated;
use syn::spanned::Spanned;
use syn::{
    FnArg, GenericArgument, Generics, Pat, PatType, PathArguments, PathSegment, ReturnType, Signature, Token, Type,
    TypePath, Visibility,
};

use crate::args::LAST;
use crate::claim_line::{Carried, ClaimLine, merged};
use crate::document;
use crate::handler::{Handler, is_debug_handler};
use crate::model::Model;
use crate::never_returned::never_returned;
use crate::presence::presence;
use crate::runtime::Runtime;
use crate::values::Fingerprint;

/// Emits the function unchanged, with this attribute behind all other attributes, so that these see the code as it was
/// written.
pub(crate) fn behind_the_others(
    handler: &Handler,
    model: &Model,
    line: ClaimLine,
    arguments: &TokenStream,
) -> TokenStream {
    let Handler { attributes, visibility, signature, body } = handler;
    let (last, private) = (Ident::new(LAST, Span::call_site()), &model.runtime);
    let mut signature = signature.clone();
    // `debug_handler` calls the function with one value for each argument that it sees.
    if handler.is_under_debug_handler() {
        let inputs: Vec<&PatType> = handler.arguments().collect();
        let carried = &inputs[line.by_axum..];
        if carried.len() > 1 && handler.has_macros_but_debug_handler() {
            // The other attributes see the function as it was written.
            let (debug_handlers, others): (Vec<_>, Vec<_>) = attributes.iter().partition(|it| is_debug_handler(it));
            return quote! {
                #(#others)*
                #[#private::idempotent(#arguments)]
                #(#debug_handlers)*
                #visibility #signature #body
            };
        }
        if carried.len() > 1 {
            let by_axum = inputs[..line.by_axum].iter().map(|&argument| FnArg::Typed(argument.clone()));
            signature.inputs = by_axum.chain([merged(carried)]).collect();
        } else if inputs.is_empty() {
            signature.inputs.push(syn::parse_quote!(_: ()));
        }
    }
    quote! {
        #(#attributes)*
        #[#private::idempotent(#last, #arguments)]
        #visibility #signature #body
    }
}

pub(crate) fn expand(handler: &Handler, model: &Model, line: ClaimLine) -> TokenStream {
    let Handler { attributes, visibility, signature, body } = handler;
    let arguments: Vec<&PatType> = handler.arguments().collect();
    let names = names(&arguments);
    let (gate, pending, private) = (local("gate"), local("pending"), &model.runtime);
    let last = if arguments.len() > line.by_axum + 1 { &local("last") } else { &names[names.len() - 1] };

    let inputs = guarded_inputs(signature, &arguments, &names, last, model, line);
    let guarded = guarded_signature(signature, inputs, private);
    let policy = policy(signature, &arguments, model, line);
    let document = document::operation(signature, private);
    let (before, after) = bindings(&arguments, &names, last, line);
    let expressions = policy_expressions(model);
    // The expressions use the handler's variables, which exist only in the handler's future.
    let (evaluation, expressions, runner) = if expressions.is_empty() {
        (TokenStream::new(), expressions, &gate)
    } else {
        (
            quote!(let (mut #gate, #pending) = #gate.evaluate_in_handler();),
            quote!(#expressions #gate.evaluated().await;),
            &pending,
        )
    };
    let never_returned = never_returned(signature, private, is_half_typed(body.stream()));
    let block = inner_block(body);
    // `run` is located at the name, so that a future that is not `Send` is reported there.
    let run = Ident::new("run", signature.ident.span().resolved_at(Span::mixed_site()));
    // `async` is located at the brace of the body, because an editor shows the documentation of `async` at every place
    // that the spans of the tokens contain.
    let at_brace = body.span_open().resolved_at(Span::mixed_site());
    let declared = quote_spanned!(at_brace=> if false { #never_returned });
    let statements = quote!(#before #declared #expressions #after #block);
    // The statements are located at the body, because their errors are errors of the body.
    let mut statements = Group::new(Delimiter::Brace, statements);
    statements.set_span(body.span().resolved_at(Span::mixed_site()));
    let future = quote_spanned!(at_brace=> async move #statements);
    // `into_response` is located at the return type, so that a type that does not implement `IntoResponse` is reported
    // there.
    let span = match &signature.output {
        ReturnType::Default => Span::mixed_site(),
        ReturnType::Type(_, declared) => declared.span().resolved_at(Span::mixed_site()),
    };
    let at_return = private.located(span);
    let into_response = quote_spanned!(span=> #at_return::into_response);
    let extraction = extraction(line, last, private);
    let guarded_body = quote! {
        #policy
        #document
        let (#gate, #last) = #private::open(&__IDEMPOTENT_POLICY, #extraction, #last);
        #evaluation
        #runner.#run(#future, #into_response)
    };
    let mut guarded_body = Group::new(Delimiter::Brace, guarded_body);
    guarded_body.set_span(body.span());
    let lints = lints(handler);
    quote! { #lints #(#attributes)* #visibility #guarded #guarded_body }
}

fn guarded_signature(signature: &Signature, inputs: Punctuated<FnArg, Token![,]>, private: &Runtime) -> Signature {
    // The output has the user's span: `dead_code` and other lints treat a signature that ends in a generated span as
    // foreign code, and ignore it.
    let span = signature.ident.span();
    let completion = private.located(span);
    let output = syn::parse_quote_spanned!(span=> -> #completion::Completion);
    Signature { asyncness: None, inputs, output, ..signature.clone() }
}

/// Returns the expression that decides when the arguments that `last` carries are extracted.
fn extraction(line: ClaimLine, last: &Ident, private: &Runtime) -> TokenStream {
    match line.carried {
        Carried::BeforeClaim => quote!(#private::ExtractionTime::BeforeClaim),
        Carried::AfterClaim => quote!(#private::ExtractionTime::UnderClaim),
        Carried::ByType => quote!(#private::Probe::of(&#last).idempotent_extraction()),
    }
}

/// Allows the lints that the expansion triggers and that the handler's author cannot fix. There must be few of them,
/// because a crate that forbids a lint cannot allow it.
fn lints(Handler { attributes, visibility, .. }: &Handler) -> TokenStream {
    let must_be_used = attributes.iter().any(|attribute| attribute.path().is_ident("must_use"));
    let double_must_use = must_be_used.then(|| quote!(#[allow(clippy::double_must_use)]));
    // This is needed for a method of a trait that declares an `async fn`.
    let refining = matches!(visibility, Visibility::Inherited).then(|| quote!(#[allow(refining_impl_trait)]));
    quote! { #refining #double_must_use }
}

/// Returns one name for each argument, located at the argument, so that errors of its type are reported there.
fn names(arguments: &[&PatType]) -> Vec<Ident> {
    let named = |(index, argument): (usize, &&PatType)| {
        let mut name = local(&index.to_string());
        name.set_span(argument.span().resolved_at(Span::mixed_site()));
        name
    };
    if arguments.is_empty() { vec![local("0")] } else { arguments.iter().enumerate().map(named).collect() }
}

/// Returns a variable that the user's code cannot use by accident.
fn local(name: &str) -> Ident {
    format_ident!("__idempotent_{name}", span = Span::mixed_site())
}

fn guarded_inputs(
    signature: &Signature,
    arguments: &[&PatType],
    names: &[Ident],
    last: &Ident,
    model: &Model,
    line: ClaimLine,
) -> Punctuated<FnArg, Token![,]> {
    let private = &model.runtime;
    let mode = match model.fingerprint {
        _ if model.has_own_rules_for_keys() => quote!(#private::ReadByGuard),
        Fingerprint::Request => quote!(#private::Buffered),
        Fingerprint::Json => quote!(#private::BufferedJson),
        Fingerprint::Expression(_) => quote!(#private::Targeted),
        Fingerprint::None | Fingerprint::Only(_) => quote!(#private::Streamed),
    };
    let mode = document::mode(signature, model, &mode);
    let (by_axum, carried) = arguments.split_at(line.by_axum);
    let attributes = by_axum.iter().map(|argument| presence(argument));
    let types = by_axum.iter().map(|argument| &argument.ty);
    let carried = match carried {
        [] => quote!(()),
        [only] => only.ty.to_token_stream(),
        several => {
            let types = several.iter().map(|argument| &argument.ty);
            quote!((#(#types),*))
        }
    };
    let names = names.iter();
    syn::parse_quote! {
        #(#attributes #names: #types,)*
        #last: #private::Guarded<#carried, #mode>
    }
}

/// Binds the handler's variables: the variables before the policy's expressions, and the variables after them. Each
/// argument is first moved in as a whole, so that all arguments are dropped at the end, in the same order as in a plain
/// function.
fn bindings(arguments: &[&PatType], names: &[Ident], last: &Ident, line: ClaimLine) -> (TokenStream, TokenStream) {
    let bind = |argument: &PatType, name: &Ident, whole: TokenStream| {
        let (pattern, attributes, presence) = (&argument.pat, &argument.attrs, presence(argument));
        // If the variable begins with `_`, `clippy::no_effect_underscore_binding` would report the plain binding.
        let is_underscored = matches!(&**pattern, Pat::Ident(variable) if variable.ident.to_string().starts_with('_'));
        let binding = if is_underscored { quote!((#pattern,) = (#name,)) } else { quote!(#pattern = #name) };
        quote! {
            #presence let #name = #whole;
            #(#attributes)* let #binding;
        }
    };
    let (by_axum, carried) = arguments.split_at(line.by_axum);
    let (axums_names, carried_names) = names.split_at(line.by_axum);
    let before = by_axum.iter().zip(axums_names).map(|(argument, name)| bind(argument, name, quote!(#name))).collect();
    let after = match carried {
        [] => TokenStream::new(),
        [only] => bind(only, &carried_names[0], quote!(#last.take())),
        several => {
            let parts: Vec<Ident> = carried_names.iter().map(|name| format_ident!("{name}_carried")).collect();
            let each = several.iter().zip(carried_names).zip(&parts);
            let each = each.map(|((argument, name), part)| bind(argument, name, quote!(#part)));
            quote!(let (#(#parts),*) = #last.take(); #(#each)*)
        }
    };
    if line.carried == Carried::BeforeClaim { (quote!(#before #after), TokenStream::new()) } else { (before, after) }
}

/// Returns the name of the function as it appears in paths.
pub(crate) fn name(signature: &Signature) -> String {
    signature.ident.unraw().to_string()
}

fn policy(signature: &Signature, arguments: &[&PatType], model: &Model, line: ClaimLine) -> TokenStream {
    let function = name(signature);
    let settings = model.literal(&function);
    let transactions = |arguments: &[&PatType]| {
        arguments.iter().filter_map(|it| transaction(it, &signature.generics)).cloned().collect()
    };
    let all: Vec<Type> = transactions(arguments);
    let late: Vec<Type> = match line.carried {
        Carried::AfterClaim => transactions(&arguments[line.by_axum..]),
        Carried::BeforeClaim | Carried::ByType => Vec::new(),
    };
    let late = (!late.is_empty()).then(|| quote!(after_claim [#(#late),*]));
    let private = &model.runtime;
    quote! {
        #private::policy! { __IDEMPOTENT_POLICY #function [#(#all),*] #late #settings }
    }
}

/// The names of the types of a transaction's database.
const DATABASES: [&str; 2] = ["Postgres", "Sqlite"];

/// Returns the argument's type if it is written like a `Tx`. A static can use neither a type that depends on generics,
/// which an attribute cannot always see, nor a type that may be compiled out. A `Tx` of such a type is checked when it
/// is used.
fn transaction<'a>(argument: &'a PatType, generics: &Generics) -> Option<&'a Type> {
    let is_named_like = |ty: &Type| match last_segment(ty) {
        Some(segment) => DATABASES.iter().any(|database| segment.ident == database),
        None => false,
    };
    let segment = last_segment(&argument.ty).filter(|segment| segment.ident == "Tx")?;
    let is_concrete = match &segment.arguments {
        PathArguments::None => generics.type_params().all(|parameter| parameter.ident != segment.ident),
        PathArguments::AngleBracketed(arguments) => match (arguments.args.first(), arguments.args.len()) {
            (Some(GenericArgument::Type(database)), 1) => is_named_like(database),
            _ => false,
        },
        PathArguments::Parenthesized(_) => false,
    };
    (is_concrete && presence(argument).is_empty()).then_some(&argument.ty)
}

/// Returns the path's last segment, unless the path begins with a type: `Self::Tx`, for example, depends on generics.
fn last_segment(ty: &Type) -> Option<&PathSegment> {
    let Type::Path(TypePath { qself: None, path, .. }) = written(ty) else { return None };
    let begins_with_type = path.segments.len() > 1
        && path.leading_colon.is_none()
        && path.segments[0].ident.unraw().to_string().starts_with(char::is_uppercase);
    if begins_with_type { None } else { path.segments.last() }
}

/// Returns the type without the groups and parentheses that a macro or the author has put around it.
fn written(ty: &Type) -> &Type {
    match ty {
        Type::Group(group) => written(&group.elem),
        Type::Paren(paren) => written(&paren.elem),
        ty => ty,
    }
}

/// Emits the policy's expressions. The key comes first, because the others matter only for a request with a key.
fn policy_expressions(model: &Model) -> TokenStream {
    let mut expressions = TokenStream::new();
    for (name, expression) in model.expressions() {
        // The call is located at the expression, so that a type that does not fit is reported there.
        let span = expression.span().resolved_at(Span::mixed_site());
        let method = Ident::new(name, span);
        let mut gate = local("gate");
        gate.set_span(span);
        let private = model.runtime.located(span);
        // The method is called by its path, because a trait of the user may have a method of this name for every type.
        expressions.extend(match name {
            "caller" => {
                let value = quote_spanned!(span=> #private::CallerExpression::of(&(#expression)));
                quote_spanned!(span=> #value.idempotent_caller(&mut #gate);)
            }
            "cache_if" => quote_spanned!(span=> #private::Gate::#method(&mut #gate, #expression);),
            _ => quote_spanned!(span=> #private::Gate::#method(&mut #gate, &(#expression));),
        });
    }
    expressions
}

/// Returns whether an editor passes a body that is being typed: rust-analyzer writes `__ra_fixup` where a name is
/// missing. Such a body has no value yet, and a value of the declared type would cause one more error than in a plain
/// function.
fn is_half_typed(body: TokenStream) -> bool {
    body.into_iter().any(|token| match token {
        TokenTree::Ident(ident) => ident == "__ra_fixup",
        TokenTree::Group(group) => is_half_typed(group.stream()),
        _ => false,
    })
}

/// Returns the body as the last expression of a generated block. `unused_braces` would report the body's braces if they
/// contain a single expression, so an empty statement is added. Other braces than the user's would also prevent that
/// report, but then temporaries in code of an older edition would be dropped by the rules of this crate's edition.
fn inner_block(body: &Group) -> Group {
    let statements = body.stream();
    let mut first_two = statements.clone().into_iter();
    let is_punct =
        |token: Option<TokenTree>, char| matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == char);
    if is_punct(first_two.next(), '#') && is_punct(first_two.next(), '!') {
        // Inner attributes must stay first, and the lint ignores a block that has some.
        return body.clone();
    }
    let mut semicolon = Punct::new(';', Spacing::Alone);
    semicolon.set_span(Span::mixed_site());
    let mut block = Group::new(Delimiter::Brace, quote! { #semicolon #statements });
    block.set_span(body.span());
    block
}
