//! `wasi:cli/environment`: arguments and variables, read from what all instances of a container share.
//!
//! wasmtime's own keeps a copy of both in each store. A handler's instances are made by the thousand
//! and mostly ask for no arguments, so these are copied when a guest asks. Many ask for their
//! variables, of which a Pod may have seven for each Service: past the bindings, which would have a
//! copy of all, they are written into the guest's memory from where they are.

use std::sync::Arc;

use wasmtime::component::{HasData, Linker};
use wasmtime_wasi::p2::bindings::cli::environment as p2;
use wasmtime_wasi::p3::bindings::cli::environment as p3;

use crate::files::replace;
use crate::instance::Host;
use crate::limits::GuestConfig;

const P2: &str = "wasi:cli/environment@0.2.12";
const P3: &str = "wasi:cli/environment@0.3.0";

/// What the bindings work on.
pub(crate) struct EnvironmentView<'a>(pub(crate) &'a GuestConfig);

struct HasEnvironment;

impl HasData for HasEnvironment {
    type Data<'a> = EnvironmentView<'a>;
}

impl p2::Host for EnvironmentView<'_> {
    fn get_environment(&mut self) -> wasmtime::Result<Vec<(String, String)>> {
        Ok(self.0.env.to_vec())
    }

    fn get_arguments(&mut self) -> wasmtime::Result<Vec<String>> {
        Ok(self.0.args.clone())
    }

    fn initial_cwd(&mut self) -> wasmtime::Result<Option<String>> {
        Ok(self.0.cwd.clone())
    }
}

impl p3::Host for EnvironmentView<'_> {
    fn get_environment(&mut self) -> wasmtime::Result<Vec<(String, String)>> {
        Ok(self.0.env.to_vec())
    }

    fn get_arguments(&mut self) -> wasmtime::Result<Vec<String>> {
        Ok(self.0.args.clone())
    }

    fn get_initial_cwd(&mut self) -> wasmtime::Result<Option<String>> {
        Ok(self.0.cwd.clone())
    }
}

fn define(linker: &mut Linker<Host>, interface: &str) -> wasmtime::Result<()> {
    linker.instance(interface)?.func_wrap("get-environment", |mut store, (): ()| {
        Ok((Arc::clone(&store.data_mut().own_environment().0.env),))
    })
}

/// `wasi:cli/environment` of WASI 0.2.
pub(crate) fn add_p2(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    p2::add_to_linker::<_, HasEnvironment>(linker, Host::own_environment)?;
    replace(linker, |linker| define(linker, P2))
}

/// `wasi:cli/environment` of WASI 0.3.
pub(crate) fn add_p3(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    p3::add_to_linker::<_, HasEnvironment>(linker, Host::own_environment)?;
    replace(linker, |linker| define(linker, P3))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Defined once more, it is a second one of its name.
    #[test]
    fn what_is_replaced_was_there() {
        let mut linker = Linker::<Host>::new(&wasmtime::Engine::default());
        p2::add_to_linker::<_, HasEnvironment>(&mut linker, Host::own_environment).expect("0.2");
        p3::add_to_linker::<_, HasEnvironment>(&mut linker, Host::own_environment).expect("0.3");
        for interface in [P2, P3] {
            assert!(define(&mut linker, interface).is_err(), "{interface}");
        }
    }

    #[test]
    fn guests_can_be_linked_with_what_is_replaced() {
        let engine = wasmtime::Engine::default();
        let mut linker = Linker::<Host>::new(&engine);
        add_p2(&mut linker).expect("0.2");
        add_p3(&mut linker).expect("0.3");
        for interface in [P2, P3] {
            let text = format!(
                r#"(component (import "{interface}" (instance
                    (export "get-environment" (func (result (list (tuple string string))))))))"#
            );
            let component = wasmtime::component::Component::new(&engine, &text).expect("it is one");
            linker.instantiate_pre(&component).map(drop).expect(interface);
        }
    }
}
