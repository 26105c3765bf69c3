//! KubeVirt: a manifest with the machine, and with a volume for each of its disks, to which the disk is uploaded.

use super::{Bus, Document, Machine, MachineDisk, MachineNic, NicModel, Plug};

/// The table's line.
pub const DOCUMENT: Document = Document { suffix: "-kubevirt.yaml", executable: false, text: manifest };

/// What `--network` calls the network that every pod has.
const POD: &str = "pod";
/// The longest name of an object; disks are called by what follows it, too.
const NAME_LEN: usize = 50;

/// The manifest. Its machine does not run until somebody starts it.
pub fn manifest(machine: &Machine) -> String {
    let name = object_name(&machine.name);
    let uploads: String = machine.disks.iter().map(|disk| upload(&name, disk)).collect();
    let claims: String = machine.disks.iter().map(|disk| claim(&name, disk)).collect();
    let mut text = format!(
        "# The guest {} as a machine of KubeVirt. With its disks beside it:
#
#   kubectl apply -f {}
{uploads}#   virtctl start {name}
#
# Each disk is uploaded to a volume of the cluster's default storage class (by CDI, the Containerized Data Importer). To have it in a
# registry instead, build an image FROM scratch with the disk in /disk/, and replace 'dataVolume' by 'containerDisk: {{image: …}}': what
# the guest writes is then lost when it stops.
{claims}---
apiVersion: kubevirt.io/v1
kind: VirtualMachine
metadata:
  name: {}
",
        machine.name,
        DOCUMENT.file(&machine.name),
        quoted(&name)
    );
    let description = machine.description.trim();
    if !description.is_empty() {
        text += &format!("  annotations:\n    description: {}\n", quoted(description));
    }
    text += &format!(
        "spec:
  runStrategy: Halted
  template:
    metadata:
      labels:
        kubevirt.io/vm: {}
    spec:
      domain:
        cpu:
          cores: {}
        memory:
          guest: {}Mi
        machine:
          type: q35
        firmware:
",
        quoted(&name),
        machine.vcpus,
        machine.memory_mib
    );
    if let Some(uuid) = &machine.uuid {
        text += &format!("          uuid: {}\n", quoted(uuid));
    }
    text += match machine.uefi {
        true => "          bootloader:\n            efi:\n              secureBoot: false\n",
        false => "          bootloader:\n            bios: {}\n",
    };
    let zone = match machine.local_time {
        true => "          # Its clock runs in local time: name the zone here, as 'timezone: Europe/Berlin', in place of utc.\n",
        false => "",
    };
    text += &format!(
        "        features:
          acpi: {{}}
        clock:
{zone}          utc: {{}}
          timer:
            hpet:
              present: false
            pit:
              tickPolicy: delay
            rtc:
              tickPolicy: catchup
        devices:
"
    );
    if !machine.uefi {
        text += "          # Kernels before 3.x know virtio's older interface only.\n          useVirtioTransitional: true\n";
    }
    text += "          rng: {}\n          disks:\n";
    for (index, disk) in machine.disks.iter().enumerate() {
        text += &attached(index, disk);
    }
    let places = places(machine);
    let section = |title: &str, items: Vec<String>| match items.is_empty() {
        true => format!("{title} []\n"),
        false => format!("{title}\n{}", items.concat()),
    };
    let numbered = || machine.nics.iter().zip(&places).enumerate();
    text += &section("          interfaces:", numbered().map(|(index, (nic, place))| interface(index, nic, place)).collect());
    text += &section("      networks:", numbered().map(|(index, (_, place))| network(index, place)).collect());
    text += "      terminationGracePeriodSeconds: 180\n      volumes:\n";
    for disk in &machine.disks {
        text += &format!("        - name: {0}\n          dataVolume:\n            name: {1}\n", disk.device, quoted(&volume(&name, disk)));
    }
    text
}

/// Where a NIC leads to.
enum Place {
    Pod,
    /// A NetworkAttachmentDefinition of Multus.
    Multus(String),
    /// A second NIC for the pod's own network, of which there is one only.
    Open,
}

fn places(machine: &Machine) -> Vec<Place> {
    let mut pods = 0;
    let place = |nic: &MachineNic| match &nic.plug {
        Some(Plug::Bridge(name)) => Place::Multus(name.clone()),
        Some(Plug::Network(name)) if name != POD => Place::Multus(name.clone()),
        _ => {
            pods += 1;
            if pods == 1 { Place::Pod } else { Place::Open }
        }
    };
    machine.nics.iter().map(place).collect()
}

fn interface(index: usize, nic: &MachineNic, place: &Place) -> String {
    let model = match nic.model {
        NicModel::Virtio => "virtio",
        NicModel::E1000 => "e1000",
    };
    let binding = if matches!(place, Place::Pod) { "masquerade" } else { "bridge" };
    format!(
        "            - name: nic{index}\n              model: {model}\n              macAddress: {}\n              {binding}: {{}}\n",
        quoted(&nic.mac)
    )
}

fn network(index: usize, place: &Place) -> String {
    let open = "          # A pod has one network of its own: name a NetworkAttachmentDefinition, or say --network OLD:NAME.\n";
    let (comment, kind) = match place {
        Place::Pod => ("", "pod: {}".to_owned()),
        Place::Multus(name) => ("", format!("multus:\n            networkName: {}", quoted(name))),
        Place::Open => (open, format!("multus:\n            networkName: nic{index}")),
    };
    format!("        - name: nic{index}\n{comment}          {kind}\n")
}

fn attached(index: usize, disk: &MachineDisk) -> String {
    let bus = if disk.bus == Bus::Virtio { "virtio" } else { "sata" };
    let read_only = if disk.read_only { "                readonly: true\n" } else { "" };
    format!(
        "            - name: {}\n              bootOrder: {}\n              disk:\n                bus: {bus}\n{read_only}",
        disk.device,
        index + 1
    )
}

/// The volume that a disk is uploaded to.
fn claim(name: &str, disk: &MachineDisk) -> String {
    format!(
        "---
apiVersion: cdi.kubevirt.io/v1beta1
kind: DataVolume
metadata:
  name: {}
  annotations:
    cdi.kubevirt.io/storage.bind.immediate.requested: \"true\"
spec:
  source:
    upload: {{}}
  storage:
    resources:
      requests:
        storage: {}
",
        quoted(&volume(name, disk)),
        disk.size
    )
}

fn upload(name: &str, disk: &MachineDisk) -> String {
    let file = disk.file.file_name().map(|f| f.to_string_lossy().into_owned()).unwrap_or_default();
    format!("#   virtctl image-upload dv {} --no-create --image-path={file}\n", volume(name, disk))
}

fn volume(name: &str, disk: &MachineDisk) -> String {
    format!("{name}-{}", disk.device)
}

/// Names of objects are small letters, digits and dashes.
fn object_name(name: &str) -> String {
    let small: String = name.to_ascii_lowercase().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(NAME_LEN).collect();
    let trimmed = small.trim_matches('-');
    // One that begins with a digit is none for all kinds of objects.
    if trimmed.starts_with(|c: char| c.is_ascii_alphabetic()) {
        trimmed.into()
    } else {
        format!("vm-{trimmed}").trim_end_matches('-').into()
    }
}

/// JSON's strings are YAML's as well.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use serde_json::{Value, json};

    use super::*;

    /// The manifest's documents, as Python's YAML reads them.
    fn parsed(machine: &Machine) -> Vec<Value> {
        let script = "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(sys.stdin))))";
        let mut python = Command::new("python3").args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        python.stdin.take().unwrap().write_all(manifest(machine).as_bytes()).unwrap();
        let output = python.wait_with_output().unwrap();
        assert!(output.status.success(), "python3-yaml is needed (scripts/setup), and must be able to read:\n{}", manifest(machine));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    #[test]
    fn the_manifest_describes_machine_and_volumes() {
        let documents = parsed(&crate::output::example());
        let kinds: Vec<_> = documents.iter().map(|d| (d["kind"].as_str().unwrap(), d["metadata"]["name"].as_str().unwrap())).collect();
        assert_eq!(kinds, [("DataVolume", "web-vda"), ("DataVolume", "web-vdb"), ("VirtualMachine", "web")]);
        assert_eq!(documents[0]["spec"]["storage"]["resources"]["requests"]["storage"], json!(10_u64 << 30));
        let machine = &documents[2];
        assert_eq!(machine["metadata"]["annotations"]["description"], "the shop & its <database>\u{7}");
        assert_eq!(machine["spec"]["runStrategy"], "Halted");
        let spec = &machine["spec"]["template"]["spec"];
        let domain = &spec["domain"];
        assert_eq!((&domain["memory"]["guest"], &domain["cpu"]["cores"]), (&json!("512Mi"), &json!(2)));
        assert_eq!(domain["firmware"], json!({"uuid": "4dea22b3-1d52-d8f3-2516-782e98ab3fa0", "bootloader": {"bios": {}}}));
        assert_eq!(
            domain["devices"]["disks"],
            json!([
                {"name": "vda", "bootOrder": 1, "disk": {"bus": "virtio"}},
                {"name": "vdb", "bootOrder": 2, "disk": {"bus": "virtio", "readonly": true}}
            ])
        );
        assert_eq!(
            domain["devices"]["interfaces"][2],
            json!({"name": "nic2", "model": "virtio", "macAddress": "00:16:3e:77:00:12", "masquerade": {}})
        );
        assert_eq!(domain["devices"]["interfaces"][0]["bridge"], json!({}));
        assert_eq!(
            spec["networks"],
            json!([
                {"name": "nic0", "multus": {"networkName": "br0"}},
                {"name": "nic1", "multus": {"networkName": "lan"}},
                {"name": "nic2", "pod": {}}
            ])
        );
        assert_eq!(spec["volumes"][1], json!({"name": "vdb", "dataVolume": {"name": "web-vdb"}}));
    }

    /// Every field of `value` is one of KubeVirt's own API (tests/fixtures/kubevirt), and of the right kind.
    fn check_fields(fields: &Value, kind: &str, value: &Value, place: &str) {
        if let Some(kind) = kind.strip_prefix("Array<").and_then(|k| k.strip_suffix('>')) {
            let items = value.as_array().unwrap_or_else(|| panic!("{place} is no list"));
            items.iter().for_each(|item| check_fields(fields, kind, item, place));
            return;
        }
        match (fields.get(kind), kind) {
            (Some(known), _) => {
                for (name, inner) in value.as_object().unwrap_or_else(|| panic!("{place} is no object")) {
                    let kind = known[name].as_str().unwrap_or_else(|| panic!("{place}.{name}: KubeVirt knows no such field"));
                    check_fields(fields, kind, inner, &format!("{place}.{name}"));
                }
            }
            (None, "string") => assert!(value.is_string(), "{place} is no string"),
            (None, "boolean") => assert!(value.is_boolean(), "{place} is no boolean"),
            (None, "number") => assert!(value.is_number(), "{place} is no number"),
            (None, _) => {}
        }
    }

    #[test]
    fn every_field_is_kubevirts() {
        let fields = include_str!("../../../../tests/fixtures/kubevirt/fields.json");
        let fields = serde_json::from_str(fields).unwrap();
        for (uefi, local_time) in [(false, true), (true, false)] {
            let machine = Machine { uefi, local_time, ..crate::output::example() };
            for document in parsed(&machine) {
                let kind = if document["kind"] == "DataVolume" { "V1beta1DataVolume" } else { "V1VirtualMachine" };
                check_fields(&fields, kind, &document, kind);
            }
        }
    }

    #[test]
    fn firmware_networks_and_hardware_of_other_guests() {
        let mut machine = crate::output::example();
        machine.uefi = true;
        machine.local_time = true;
        machine.name = "Web_1.Example".into();
        machine.emulate_hardware();
        machine.nics.iter_mut().for_each(|nic| nic.plug = Some(Plug::Network("pod".into())));
        let documents = parsed(&machine);
        assert_eq!(documents[2]["metadata"]["name"], "web-1-example");
        let spec = &documents[2]["spec"]["template"]["spec"];
        assert_eq!(spec["domain"]["firmware"]["bootloader"], json!({"efi": {"secureBoot": false}}));
        assert_eq!(spec["domain"]["devices"]["disks"][0]["disk"]["bus"], "sata");
        assert_eq!(spec["networks"][0]["pod"], json!({}));
        assert_eq!(spec["networks"][1]["multus"]["networkName"], "nic1", "a pod has one network of its own");
        machine.nics.clear();
        assert_eq!(parsed(&machine)[2]["spec"]["template"]["spec"]["networks"], json!([]));
    }

    #[test]
    fn names_of_objects() {
        for (name, expected) in [("web", "web"), ("Web_1.x", "web-1-x"), ("10.0.0.1", "vm-10-0-0-1"), ("---", "vm")] {
            assert_eq!(object_name(name), expected);
        }
        assert!(object_name(&"a".repeat(200)).len() <= NAME_LEN);
    }
}
