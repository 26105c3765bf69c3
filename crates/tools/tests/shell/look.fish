# What one asks of a guest that is only looked at.
run
list-devices
list-partitions
list-filesystems
lvs
vgs
pvs
inspect-os
inspect-get-type /dev/sda1
inspect-get-distro /dev/sda1
inspect-get-arch /dev/sda1
inspect-get-major-version /dev/sda1
inspect-get-minor-version /dev/sda1
inspect-get-product-name /dev/sda1
inspect-get-hostname /dev/sda1
inspect-get-package-format /dev/sda1
inspect-get-package-management /dev/sda1
inspect-get-osinfo /dev/sda1
inspect-get-roots
inspect-get-mountpoints /dev/sda1
inspect-get-filesystems /dev/sda1 | sort
part-list /dev/sda
part-get-parttype /dev/sda
part-get-bootable /dev/sda 1
part-get-mbr-id /dev/sda 2
part-to-dev /dev/sda1
part-to-partnum /dev/sda2
blockdev-getsize64 /dev/sda2
blockdev-getsz /dev/sda2
blockdev-getss /dev/sda
vfs-type /dev/sda1
vfs-label /dev/sda1
vfs-uuid /dev/sda1
vfs-type /dev/sda2
mount-ro /dev/sda1 /
mounts
mountpoints
cat /etc/motd
cat /srv/open
read-file /srv/open
echo
echo a  "b  c"   'd e' "tab\there\x21\041"
ls /
ls /srv
find /srv
find /srv/deep/
head /srv/numbers
head-n 3 /srv/numbers
tail /srv/numbers
tail-n 2 /srv/numbers
read-lines /etc/motd
grep l /etc/motd
egrep 'hel+o|last' /etc/motd
fgrep world /etc/motd
grepi HELLO /etc/motd
stat /srv/absolute
lstat /srv/absolute
lstatns /etc/motd
readlink /srv/absolute
exists /etc/motd
exists /etc/none
is-file /etc/motd
is-dir /etc/motd
is-symlink /bin
is-file /srv/absolute followsymlinks:true
is-dir /bin
filesize /srv/numbers
checksum md5 /etc/motd
checksum sha256 /etc/motd
checksum crc /etc/motd
du /srv
wc-l /etc/motd
wc-w /etc/motd
wc-c /etc/motd
realpath /bin/ls
case-sensitive-path /ETC/motd
file-architecture /usr/bin/ls
statvfs /
strings /usr/bin/ls
umount-all
mounts
# Errors that are let be.
-cat /etc/motd
-mount /dev/sda9 /
echo end
