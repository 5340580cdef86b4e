//! TLS towards instances: each is verified under the host of its address, unless another name was given.

use crate::channel::transport::socket::BoxIo;
use crate::error::ConfigError;
use crate::instance::Address;
use crate::tls::ClientTls;

pub(crate) use crate::tls::TlsError;

/// Makes the TLS sessions of a channel.
#[derive(Debug, Clone)]
pub(crate) struct TlsClient {
    client: crate::tls::TlsClient,
}

impl TlsClient {
    pub(crate) fn new(tls: &ClientTls) -> Result<Self, ConfigError> {
        Ok(Self { client: tls.build()? })
    }

    pub(crate) async fn handshake(&self, address: &Address, io: BoxIo) -> Result<BoxIo, TlsError> {
        Ok(Box::new(self.client.handshake(address.host(), io).await?))
    }
}
