#!/bin/sh
set -e
if [ "$1" = purge ]; then
  rm -rf /var/lib/shoal /var/lib/shoal-scheduler
fi
if [ -d /run/systemd/system ]; then
  systemctl daemon-reload
fi
