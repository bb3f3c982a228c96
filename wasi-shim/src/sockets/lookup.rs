//! `wasi:sockets/ip-name-lookup`. The network answers at once, from its table.

use std::net::IpAddr;

use wasmtime::component::Resource;
use wasmtime_wasi::p2::bindings::sockets::ip_name_lookup::{
    Host, HostResolveAddressStream, ResolveAddressStream,
};
use wasmtime_wasi::p2::bindings::sockets::network::IpAddress;
use wasmtime_wasi::p2::{DynPollable, Network, Pollable, SocketResult, subscribe};

use super::{SocketsView, as_label, as_ours, refused};

/// The addresses that were not given out yet.
struct Addresses(std::vec::IntoIter<IpAddr>);

#[wasmtime_wasi::async_trait]
impl Pollable for Addresses {
    async fn ready(&mut self) {}
}

impl Host for SocketsView<'_> {
    fn resolve_addresses(
        &mut self,
        network: Resource<Network>,
        name: String,
    ) -> SocketResult<Resource<ResolveAddressStream>> {
        self.table.get(&network)?;
        let found = self.sockets.network.lookup(&name).map_err(refused)?;
        Ok(as_label(self.table.push(Addresses(found.into_iter()))?))
    }
}

impl HostResolveAddressStream for SocketsView<'_> {
    fn resolve_next_address(
        &mut self,
        this: Resource<ResolveAddressStream>,
    ) -> SocketResult<Option<IpAddress>> {
        let addresses: &mut Addresses = self.table.get_mut(&as_ours(&this))?;
        Ok(addresses.0.next().map(IpAddress::from))
    }

    fn subscribe(
        &mut self,
        this: Resource<ResolveAddressStream>,
    ) -> wasmtime::Result<Resource<DynPollable>> {
        subscribe(self.table, as_ours::<_, Addresses>(&this))
    }

    fn drop(&mut self, this: Resource<ResolveAddressStream>) -> wasmtime::Result<()> {
        self.table.delete(Resource::<Addresses>::new_own(this.rep()))?;
        Ok(())
    }
}
