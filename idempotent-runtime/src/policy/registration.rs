//! The list of every annotated handler, gathered when the program is linked.

use crate::policy::Policy;

/// One `inventory` entry per emitted handler.
#[doc(hidden)]
#[derive(Debug)]
pub struct Registration(pub &'static Policy);

inventory::collect!(Registration);

/// Defines the policy of an annotated handler, in a static of this name. A proc macro would need longer to emit the
/// same tokens.
#[doc(hidden)]
#[macro_export]
macro_rules! __policy {
    ($policy:ident $function:literal [$($transaction:ty),*] after_claim [$($late:ty),*] $settings:expr) => {
        $crate::__private::policy! { $policy $function [$($transaction),*] $settings }
        const _: () = {
            use $crate::__private::OtherArgument as _;
            $($crate::__private::check_extracted_after_claim($crate::__private::Argument::<$late>::DATABASE);)*
        };
    };
    ($policy:ident $function:literal [$($transaction:ty),*] $settings:expr) => {
        static $policy: $crate::__private::Policy = {
            // Its type name contains the path of the function, with the type and the trait of its `impl` block.
            enum Here {}
            use $crate::__private::OtherArgument as _;
            $crate::__private::Policy::of_handler(
                ::core::module_path!(),
                $function,
                ::core::any::type_name::<Here>,
                &[$($crate::__private::Argument::<$transaction>::DATABASE),*],
                $settings,
            )
        };
        $crate::__private::inventory::submit! { $crate::__private::Registration(&$policy) }
    };
}

/// Returns every annotated handler of the program, ordered by module, name and place, with its policy as it is written.
pub(crate) fn written_policies() -> impl Iterator<Item = &'static Policy> {
    let entries = inventory::iter::<Registration>.into_iter().map(|entry| entry.0);
    let mut policies: Vec<&'static Policy> = entries.filter(|policy| !policy.location().is_copy()).collect();
    policies.sort_by_key(|policy| policy.location().order());
    policies.into_iter()
}
