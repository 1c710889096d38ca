#!/bin/sh
# Nothing is started that was not running: a mirror is for the operator to turn on.
set -e
systemd-sysusers shoal.conf
[ -d /run/systemd/system ] || exit 0
systemctl daemon-reload
if [ "$1" = configure ] && [ -n "$2" ]; then # an upgrade
  systemctl try-restart shoal.service shoal-scheduler.service
fi
