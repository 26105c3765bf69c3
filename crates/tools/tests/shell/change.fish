# What one does to a guest, and how it looks afterwards.
run
mount /dev/sda1 /
write /etc/new "first line\nsecond\n"
write-append /etc/new third
cat /etc/new
touch /etc/touched
mkdir /dir
mkdir-p /a/b/c
mkdir-mode /mode 0700
stat /mode | grep mode
write /dir/file content
chmod 0640 /dir/file
chown 5 6 /dir/file
cp /dir/file /dir/copy
cp-a /dir /archive
cp-r /dir /recursive
mv /dir/copy /dir/moved
ln /dir/file /dir/hard
ln-s /dir/file /dir/soft
ln-sf /dir/moved /dir/soft
readlink /dir/soft
find /
ll /dir | awk '{print $1,$2,$3,$4,$5,$9,$10,$11}'
ll /archive | awk '{print $1,$2,$3,$4,$5,$9}'
rm /dir/hard
rm-f /dir/none
rm-rf /archive
rmdir /a/b/c
-rm /dir/none
-rmdir /a
exists /archive
is-dir /a/b
truncate /srv/numbers
filesize /srv/numbers
truncate-size /srv/open 100
filesize /srv/open
setxattr user.note text 4 /etc/motd
getxattr /etc/motd user.note
getxattrs /etc/motd
lsetxattr user.two abc 3 /etc/motd
lgetxattrs /etc/motd
mkfifo 0600 /dir/pipe
mknod 0644 1 3 /dir/null
ls /dir
sync
umount-all
set-label /dev/sda1 other
vfs-label /dev/sda1
e2fsck-f /dev/sda1
part-disk /dev/sda gpt
part-list /dev/sda
part-get-parttype /dev/sda
part-init /dev/sda mbr
part-add /dev/sda p 64 40000
part-add /dev/sda p 40960 -64
part-set-bootable /dev/sda 2 true
part-get-bootable /dev/sda 2
part-set-mbr-id /dev/sda 1 0x7f
part-get-mbr-id /dev/sda 1
list-partitions
part-del /dev/sda 1
list-partitions
pvcreate /dev/sda2
vgcreate VG /dev/sda2
lvcreate LV1 VG 8
lvcreate LV2 VG 8
lvs
vgs
pvs
mkfs ext2 /dev/VG/LV1
mkfs ext4 /dev/VG/LV2 label:two
list-filesystems
vfs-label /dev/VG/LV2
mount /dev/VG/LV2 /
write /file x
ls /
umount /
mounts
