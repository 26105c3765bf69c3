//! XAPI, the pool's own interface, as JSON-RPC: a session, calls, and what their errors mean.
//!
//! Source: the XenServer Management API guide ("Using the API", "JSON-RPC").

use serde_json::{Value, json};

use super::address::{Server, is_word};
use super::client::{Answer, Client};
use crate::input::remote::{Remote, Secret};
use crate::{Error, Result};

/// A user's session. It ends when this is dropped.
pub(super) struct Session {
    pub client: Client,
    /// The pool's master.
    pub server: Server,
    id: Secret,
    /// Names and addresses of the pool's hosts, which a session may be shown to.
    pool: Vec<String>,
    /// The product's version, where it says one.
    pub version: Option<String>,
}

/// What the API answers to a call that failed.
struct Fault {
    code: String,
    details: Vec<String>,
}

impl Session {
    /// Logs in. A host that is no master says who is.
    pub fn open(server: &Server, user: &str, remote: &Remote) -> Result<Self> {
        let client = Client::new(remote, server.plain)?;
        let password = remote.password()?;
        let mut server = server.clone();
        let login = json!([user, password.0, "1.0", "guestlift"]);
        let mut answer = call(&client, &server, "session.login_with_password", login.clone())?;
        if let Err(Fault { code, details }) = &answer
            && code == "HOST_IS_SLAVE"
            && let Some(master) = details.first().and_then(|m| Server::parse(server.plain, m).ok())
        {
            // By the word of a host that has the password already; its master's certificate is checked as its own was.
            server = Server { port: server.port, ..master };
            answer = call(&client, &server, "session.login_with_password", login)?;
        }
        let id = match answer {
            Ok(Value::String(id)) if is_word(&id) => Secret(id),
            Ok(_) => return Err(Error::Invalid(format!("{server}: answers a login with no session: is it a XenServer or XCP-ng?"))),
            Err(fault) if fault.code == "SESSION_AUTHENTICATION_FAILED" => {
                return Err(Error::Invalid(format!(
                    "{server}: the password is not that of '{user}': look at --user and at the password's file"
                )));
            }
            Err(fault) => return Err(fault.explain(&server, "session.login_with_password")),
        };
        let mut session = Session { client, server, id, pool: Vec::new(), version: None };
        let hosts = session.call("host.get_all_records", json!([]))?;
        let hosts: Vec<_> = hosts.as_object().map(|hosts| hosts.values().collect()).unwrap_or_default();
        session.version = hosts.iter().find_map(|host| host["software_version"]["product_version"].as_str().map(str::to_owned));
        let names = hosts.iter().flat_map(|host| [text(host, "address"), text(host, "hostname")]);
        session.pool = names.filter(|name| !name.is_empty()).map(str::to_owned).collect();
        Ok(session)
    }

    /// Calls a method, with the session before its other arguments.
    pub fn call(&self, method: &str, arguments: Value) -> Result<Value> {
        let mut all = vec![json!(self.id.0)];
        all.extend(arguments.as_array().cloned().unwrap_or_default());
        call(&self.client, &self.server, method, Value::Array(all))?.map_err(|fault| fault.explain(&self.server, method))
    }

    /// Calls a method that gives a reference to an object.
    pub fn reference(&self, method: &str, arguments: Value) -> Result<String> {
        match self.call(method, arguments)? {
            Value::String(reference) if is_word(&reference) => Ok(reference),
            _ => Err(Error::Invalid(format!("{}: answers {method} with no reference", self.server))),
        }
    }

    /// Asks for a file.
    pub fn get(&self, path: &str, range: Option<(u64, &str)>) -> Result<Answer> {
        self.client.get(&self.server, path, &self.id, &self.pool, range)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // It would end by itself after a day.
        let _ = call(&self.client, &self.server, "session.logout", json!([self.id.0]));
    }
}

fn call(client: &Client, server: &Server, method: &str, arguments: Value) -> Result<Result<Value, Fault>> {
    let request = json!({ "jsonrpc": "2.0", "method": method, "params": arguments, "id": 1 });
    let answer = client.post(server, "/jsonrpc", &request.to_string())?;
    let mut answer: Value = serde_json::from_slice(&answer)
        .map_err(|e| Error::Invalid(format!("{server}: answers {method} with what is no JSON: is it a XenServer or XCP-ng? ({e})")))?;
    let error = answer["error"].take();
    if error.is_null() {
        return Ok(Ok(answer["result"].take()));
    }
    let details = error["data"].as_array().map(Vec::as_slice).unwrap_or_default();
    let details = details.iter().filter_map(Value::as_str).map(printable).collect();
    Ok(Err(Fault { code: printable(error["message"].as_str().unwrap_or("an error without a name")), details }))
}

impl Fault {
    fn explain(&self, server: &Server, method: &str) -> Error {
        let details = self.details.iter().filter(|d| !d.is_empty() && **d != self.code).cloned().collect::<Vec<_>>().join(", ");
        let details = if details.is_empty() { String::new() } else { format!(" ({details})") };
        let next = match self.code.as_str() {
            "RBAC_PERMISSION_DENIED" => ": the user needs the role vm-power-admin",
            "SESSION_INVALID" => ": the session has ended; begin again",
            "SR_BACKEND_FAILURE_44" | "SR_FULL" => ": the storage repository has no room for a snapshot",
            "HOST_IS_SLAVE" => ": name the pool's master",
            _ => "",
        };
        Error::Invalid(format!("{server}: {method} failed: {}{details}{next}", self.code))
    }
}

/// What a server says, fit for a terminal.
pub(super) fn printable(text: &str) -> String {
    text.chars().take(500).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A field of a record; empty where it is missing.
pub(super) fn text<'a>(record: &'a Value, field: &str) -> &'a str {
    record[field].as_str().unwrap_or_default()
}

/// A number of a record, which older servers write as text.
pub(super) fn number(record: &Value, field: &str) -> u64 {
    let value = &record[field];
    value.as_u64().or_else(|| value.as_str().and_then(|n| n.parse().ok())).unwrap_or(0)
}
