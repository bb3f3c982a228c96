// The dashboard's start: styles, then the application.
import '@fontsource-variable/inter/wght.css';
import './tokens.css';
import { mount } from 'svelte';
import App from './App.svelte';

const target = document.getElementById('app');
if (!target) throw new Error('index.html has no element with the id app');
mount(App, { target });
