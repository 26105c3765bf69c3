//! TLS with the certificate checked: by the system's authorities, or by what `--ca` names, which may be the server's own.
//!
//! A XenServer signs its certificate itself when it is installed. One that the user names is known byte for byte: its name need not
//! fit, and that it calls itself an authority does not matter. That it has expired does.

use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme, StreamOwned,
};
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, Either, LazyBuffers, NextTimeout, Transport, TransportAdapter};

use crate::{Error, Result};

/// Wraps connections of `https` addresses.
#[derive(Debug)]
pub(super) struct TlsConnector(Arc<ClientConfig>);

impl TlsConnector {
    /// Trusts the certificates of this file, or the system's authorities.
    pub fn new(ca: Option<&Path>) -> Result<Self> {
        let certificates = match ca {
            Some(file) => read(file)?,
            None => rustls_native_certs::load_native_certs().certs,
        };
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(certificates.iter().cloned());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let failed = |e: String| match ca {
            Some(file) => Error::Invalid(format!("{}: no certificate in it can be used: {e}", file.display())),
            None => Error::Invalid(format!(
                "this host has no authorities to check certificates with ({e}): install ca-certificates, or name one with --ca FILE"
            )),
        };
        let web =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().map_err(|e| failed(e.to_string()))?;
        let pinned = if ca.is_some() { certificates } else { Vec::new() };
        let verifier = Verifier { web, pinned };
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| failed(e.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        Ok(TlsConnector(Arc::new(config)))
    }
}

fn read(file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let bad = |what: String| Error::Invalid(format!("{}: {what}: --ca wants certificates in PEM", file.display()));
    let text = std::fs::read(file).map_err(|source| Error::Io { file: file.display().to_string(), action: "read", source })?;
    let certificates = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>().map_err(|e| bad(e.to_string()))?;
    if certificates.is_empty() { Err(bad("no certificate is in it".into())) } else { Ok(certificates) }
}

impl<In: Transport> Connector<In> for TlsConnector {
    type Out = Either<In, TlsTransport>;

    fn connect(&self, details: &ConnectionDetails<'_>, chained: Option<In>) -> Result<Option<Self::Out>, ureq::Error> {
        let Some(transport) = chained else { return Ok(None) };
        if !details.needs_tls() {
            return Ok(Some(Either::A(transport)));
        }
        let host = details.uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(host).map_err(|e| ureq::Error::Other(e.into()))?;
        let mut conn = ClientConnection::new(self.0.clone(), name).map_err(|e| ureq::Error::Other(e.into()))?;
        let mut sock = TransportAdapter::new(transport.boxed(), details.current_time.clone());
        sock.set_timeout(details.timeout);
        conn.complete_io(&mut sock)?;
        let config = details.config;
        let buffers = LazyBuffers::new(config.input_buffer_size(), config.output_buffer_size());
        Ok(Some(Either::B(TlsTransport { buffers, stream: StreamOwned { conn, sock } })))
    }
}

/// One connection.
pub(super) struct TlsTransport {
    buffers: LazyBuffers,
    stream: StreamOwned<ClientConnection, TransportAdapter>,
}

impl std::fmt::Debug for TlsTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsTransport")
    }
}

impl Transport for TlsTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        self.stream.sock.set_timeout(timeout);
        let output = self.buffers.output().get(..amount).unwrap_or_default();
        Ok(std::io::Write::write_all(&mut self.stream, output)?)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        self.stream.sock.set_timeout(timeout);
        let amount = std::io::Read::read(&mut self.stream, self.buffers.input_append_buf())?;
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    fn is_open(&mut self) -> bool {
        self.stream.sock.get_mut().is_open()
    }

    fn is_tls(&self) -> bool {
        true
    }
}

#[derive(Debug)]
struct Verifier {
    web: Arc<WebPkiServerVerifier>,
    /// Certificates that the user named.
    pinned: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        use CertificateError as E;
        match self.web.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // Its times are looked at before all that does not matter here.
            Err(rustls::Error::InvalidCertificate(
                E::NotValidForName
                | E::NotValidForNameContext { .. }
                | E::UnknownIssuer
                | E::InvalidPurpose
                | E::InvalidPurposeContext { .. }
                | E::Other(_),
            )) if self.pinned.iter().any(|known| known == end_entity) => Ok(ServerCertVerified::assertion()),
            outcome => outcome,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.web.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.web.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.web.supported_verify_schemes()
    }
}

/// What a failure of TLS means to the user, and what to do.
pub(super) fn explain(error: &rustls::Error, host: &str) -> String {
    use CertificateError as E;
    let fetch =
        format!("'ssh root@{host} openssl x509 -in /etc/xensource/xapi-ssl.pem > {host}.pem' gets it, and '--ca {host}.pem' trusts it");
    match error {
        rustls::Error::InvalidCertificate(E::Expired | E::ExpiredContext { .. }) => {
            "its certificate has expired: renew it there ('xe host-refresh-server-certificate' on XenServer 8, \
             'xe host-emergency-reset-server-certificate' before), and look at the clock here"
                .into()
        }
        rustls::Error::InvalidCertificate(E::NotValidYet | E::NotValidYetContext { .. }) => {
            "its certificate is not valid yet: look at the clocks, there and here".into()
        }
        // That it calls itself an authority is what most of XenServer's own do.
        rustls::Error::InvalidCertificate(E::UnknownIssuer | E::Other(_)) => {
            format!("its certificate is not known here; XenServers sign theirs themselves: {fetch}")
        }
        rustls::Error::InvalidCertificate(E::NotValidForName | E::NotValidForNameContext { .. }) => {
            format!("its certificate is one of another name: write the host's name as it is in the certificate; or {fetch}")
        }
        rustls::Error::InvalidCertificate(e) => format!("its certificate is refused ({e:?}); {fetch}"),
        rustls::Error::AlertReceived(AlertDescription::HandshakeFailure | AlertDescription::ProtocolVersion)
        | rustls::Error::PeerIncompatible(_) => {
            format!(
                "it speaks only TLS that is no longer safe, as XenServer up to 7 does: export over ssh ('ssh root@{host} xe vm-export vm=NAME filename= | v2v - …'), \
                 or write http://{host} where nobody listens"
            )
        }
        e => format!("TLS failed: {e}"),
    }
}
