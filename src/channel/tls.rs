//! TLS towards instances: each is verified under the host of its address, unless another name was given.

use super::socket::BoxIo;
use crate::error::ConfigError;
use crate::instance::Address;
use crate::tls::ClientTls;

pub(super) use crate::tls::TlsError;

/// Makes the TLS sessions of a channel.
#[derive(Debug, Clone)]
pub(super) struct TlsClient {
    client: crate::tls::TlsClient,
}

impl TlsClient {
    pub(super) fn new(tls: &ClientTls) -> Result<Self, ConfigError> {
        Ok(Self { client: tls.build()? })
    }

    pub(super) async fn handshake(&self, address: &Address, io: BoxIo) -> Result<BoxIo, TlsError> {
        Ok(Box::new(self.client.handshake(address.host(), io).await?))
    }
}
