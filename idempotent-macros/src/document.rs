//! Adds to the OpenAPI document of a handler how the handler is guarded. Without the features `utoipa` and `aide`, this
//! module adds nothing.

use proc_macro2::TokenStream;
use syn::Signature;

use crate::model::Model;
use crate::runtime::Runtime;

/// Completes the documentation of `#[utoipa::path]`, if the handler has that attribute.
///
/// utoipa's `routes!` and `paths(…)` call `__path_pay::operation()`. That function is a method of a trait, so an
/// inherent method of the same name takes precedence:
///
/// ```text
/// // Input, when `#[utoipa::path]` has been expanded:
/// struct __path_pay; impl utoipa::Path for __path_pay { .. } async fn pay(..) -> R { .. }
/// // Output, in the handler's body:
/// impl __path_pay { pub fn operation() -> Operation { operation::<Self>(&POLICY) } }
/// ```
#[cfg(feature = "utoipa")]
pub(crate) fn operation(signature: &Signature, private: &Runtime) -> TokenStream {
    use proc_macro2::Span;
    use quote::{format_ident, quote};

    if !once::is_first(&signature.ident) {
        return TokenStream::new();
    }
    let path = format_ident!("__path_{}", signature.ident, span = Span::mixed_site());
    quote! {
        const _: () = {
            use #private::utoipa::{self, openapi::path::{HttpMethod, Operation}};

            // This type is used if utoipa has emitted no such type. Otherwise the name means utoipa's type, because the
            // inner block imports the names of the module, and imported names take precedence.
            struct #path;
            impl utoipa::Path for #path {
                fn methods() -> ::std::vec::Vec<HttpMethod> {
                    ::std::vec::Vec::new()
                }
                fn path() -> ::std::string::String {
                    ::std::string::String::new()
                }
                fn operation() -> Operation {
                    ::core::default::Default::default()
                }
            }
            const _: () = {
                use self::*;
                #[allow(non_local_definitions)]
                impl #path {
                    #[doc(hidden)]
                    pub fn operation() -> #private::utoipa::openapi::path::Operation {
                        #private::operation::<Self>(&__IDEMPOTENT_POLICY)
                    }
                }
            };
        };
    }
}

#[cfg(not(feature = "utoipa"))]
pub(crate) fn operation(_: &Signature, _: &Runtime) -> TokenStream {
    TokenStream::new()
}

/// Prevents a second inherent method on one type, because `debug_handler` emits its function twice.
#[cfg(feature = "utoipa")]
mod once {
    use std::collections::HashSet;
    use std::sync::{LazyLock, Mutex, PoisonError};

    use proc_macro2::Ident;

    /// Returns whether this is the first call for a function of this name and place. The place includes the macro that
    /// emitted the function.
    pub(super) fn is_first(function: &Ident) -> bool {
        static SEEN: LazyLock<Mutex<HashSet<String>>> = LazyLock::new(Mutex::default);
        let place = format!("{function} {:?}", function.span());
        SEEN.lock().unwrap_or_else(PoisonError::into_inner).insert(place)
    }
}

/// Returns the mode of the last argument's wrapper. The mode shows aide which handler the argument belongs to and which
/// return type the handler declares.
#[cfg(feature = "aide")]
pub(crate) fn mode(signature: &Signature, model: &Model, mode: &TokenStream) -> TokenStream {
    use quote::{ToTokens, quote};
    use syn::visit::Visit;
    use syn::{ReturnType, Type};

    /// Finds types that are not allowed in the type of an argument, or that have another meaning there.
    struct OnlyReturned(bool);

    impl<'ast> Visit<'ast> for OnlyReturned {
        fn visit_type(&mut self, ty: &'ast Type) {
            self.0 |= matches!(ty, Type::ImplTrait(_) | Type::Never(_));
            syn::visit::visit_type(self, ty);
        }
    }

    let private = &model.runtime;
    let declared = match &signature.output {
        ReturnType::Default => quote!(()),
        ReturnType::Type(_, declared) => {
            let mut only_returned = OnlyReturned(false);
            only_returned.visit_type(declared);
            if only_returned.0 { quote!(#private::Response) } else { declared.to_token_stream() }
        }
    };
    let function = crate::expand::name(signature);
    let scope = model.scope_path(&function);
    quote! {
        #private::Documented<
            #mode,
            {
                #private::identity(
                    ::core::module_path!(),
                    #function,
                    #scope,
                    (::core::file!(), ::core::line!(), ::core::column!()),
                )
            },
            #declared,
        >
    }
}

#[cfg(not(feature = "aide"))]
pub(crate) fn mode(_: &Signature, _: &Model, mode: &TokenStream) -> TokenStream {
    mode.clone()
}
