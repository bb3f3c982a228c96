//! `wasi:cli/environment`: arguments and variables, read from what all instances of a container share.
//!
//! wasmtime's own keeps a copy of both in each store. A handler's instances are made by the thousand
//! and mostly ask for none, so here they are copied when a guest asks.

use wasmtime::component::HasData;
use wasmtime_wasi::p2::bindings::cli::environment as p2;
use wasmtime_wasi::p3::bindings::cli::environment as p3;

/// What a guest is told of itself.
#[derive(Debug, Default)]
pub(crate) struct Environment {
    /// The first is the program's name.
    pub(crate) args: Vec<String>,
    pub(crate) variables: Vec<(String, String)>,
    /// The directory that it starts in.
    pub(crate) cwd: Option<String>,
}

/// What the bindings work on.
pub(crate) struct EnvironmentView<'a>(pub(crate) &'a Environment);

pub(crate) struct HasEnvironment;

impl HasData for HasEnvironment {
    type Data<'a> = EnvironmentView<'a>;
}

impl p2::Host for EnvironmentView<'_> {
    fn get_environment(&mut self) -> wasmtime::Result<Vec<(String, String)>> {
        Ok(self.0.variables.clone())
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
        Ok(self.0.variables.clone())
    }

    fn get_arguments(&mut self) -> wasmtime::Result<Vec<String>> {
        Ok(self.0.args.clone())
    }

    fn get_initial_cwd(&mut self) -> wasmtime::Result<Option<String>> {
        Ok(self.0.cwd.clone())
    }
}
