//! `wasi:cli/environment`: arguments and variables, read from what all instances of a container share.
//!
//! wasmtime's own keeps a copy of both in each store. A handler's instances are made by the thousand
//! and mostly ask for none, so here they are copied when a guest asks.

use wasmtime::component::HasData;
use wasmtime_wasi::p2::bindings::cli::environment as p2;
use wasmtime_wasi::p3::bindings::cli::environment as p3;

use crate::limits::GuestConfig;

/// What the bindings work on.
pub(crate) struct EnvironmentView<'a>(pub(crate) &'a GuestConfig);

pub(crate) struct HasEnvironment;

impl HasData for HasEnvironment {
    type Data<'a> = EnvironmentView<'a>;
}

impl p2::Host for EnvironmentView<'_> {
    fn get_environment(&mut self) -> wasmtime::Result<Vec<(String, String)>> {
        Ok(self.0.env.clone())
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
        Ok(self.0.env.clone())
    }

    fn get_arguments(&mut self) -> wasmtime::Result<Vec<String>> {
        Ok(self.0.args.clone())
    }

    fn get_initial_cwd(&mut self) -> wasmtime::Result<Option<String>> {
        Ok(self.0.cwd.clone())
    }
}
